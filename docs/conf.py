"""The course as a site: `make site` builds it into build/site, to be read from disk or hosted.

Pages are the README, the executed notebooks as they are committed, the papers, the scorecard, the
cards and the measurements. Nothing is fetched, neither by the build nor by a reader: scripts,
fonts and MathJax lie in the site.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def said(file: str, what: str) -> str:
    """The value of the line `what = "value"` in a file."""
    return re.search(rf'^{what} = "(.*)"$', (ROOT / file).read_text(), re.M)[1]


project = "minidiff"
author = "the minidiff authors"
version = release = said("minidiff/__init__.py", "__version__")

extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx-mathjax-offline"]
root_doc = "README"
include_patterns = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "notebooks/*.ipynb", "docs/*.md"),
    *("data/*.md", "benchmarks/*.md"),
]
myst_enable_extensions = ["dollarmath", "amsmath", "html_image"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # they are committed with their outputs
nb_merge_streams = True

html_theme = "sphinx_book_theme"
html_title = "minidiff"
html_theme_options = {
    "repository_url": said("pyproject.toml", "Repository"),
    "use_repository_button": True,
    "use_download_button": False,
    "show_toc_level": 2,
}
html_copy_source = False
html_extra_path = ["start"]  # index.html, which leads to README.html

CONTENTS = """
```{toctree}
:hidden:
:caption: The course
:glob:

notebooks/*
```

```{toctree}
:hidden:
:caption: The library

docs/papers
docs/scorecard
CONTRIBUTING
CHANGELOG
```

```{toctree}
:hidden:
:caption: Models and measurements
:glob:

data/*
benchmarks/*
```
"""


def lead_to_sources(app, name: str, text: list[str]) -> None:
    """Links to what is no page lead to the repository; the README gets the table of contents."""
    here = Path(app.env.doc2path(name)).parent

    def lead(link: re.Match) -> str:
        target = (here / link[1]).resolve()
        is_page = target.suffix in (".md", ".ipynb", ".png", ".svg", ".gif")
        if is_page or not target.exists():
            return link[0]
        kind = "tree" if target.is_dir() else "blob"
        address = said("pyproject.toml", "Repository")
        return f"]({address}/{kind}/main/{target.relative_to(ROOT).as_posix()})"

    text[0] = re.sub(r"\]\(([^)#:\s]+)\)", lead, text[0])
    if name == root_doc:
        text[0] += CONTENTS


def setup(app) -> None:
    app.connect("source-read", lead_to_sources)
