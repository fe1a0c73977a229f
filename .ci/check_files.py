"""Every text file ends with one newline, and no file is larger than 20 MB.

python .ci/check_files.py [FILE ...]     the files named, or all that git tracks or would add
"""

import subprocess
import sys
from pathlib import Path

TEXT = {"", ".py", ".md", ".toml", ".txt", ".yml", ".ipynb", ".svg", ".csv", ".json"}
MOST_BYTES = 20_000_000


def fault(path: Path) -> str | None:
    """What is wrong with one file, or None."""
    if path.stat().st_size > MOST_BYTES:
        return f"{path}: {path.stat().st_size / 1e6:.0f} MB, at most {MOST_BYTES / 1e6:.0f} MB"
    if path.suffix in TEXT and (text := path.read_bytes()):
        if not text.endswith(b"\n") or text.endswith(b"\n\n"):
            return f"{path}: should end with one newline"
    return None


def git_files() -> list[str]:
    """Tracked and not ignored files; none outside a git checkout (a downloaded archive)."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        print("not a git checkout: line ends and file sizes not checked")
        return []
    return listed.split("\0")


if __name__ == "__main__":
    paths = [Path(name) for name in sys.argv[1:] or git_files()]
    faults = [message for path in paths if path.is_file() and (message := fault(path))]
    sys.exit("\n".join(faults) or 0)
