"""Open every page of build/site in a headless browser, from disk and without a network.

Fails, page by page, on an error in the console, a picture that is not shown, a formula that is not
set, a link to a page or place that is not there, and on anything that is fetched from outside.
Also types a word into the search and follows its first result.
"""

import os
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

from playwright.sync_api import Page, Route, sync_playwright

SITE = Path(__file__).resolve().parent.parent / "build" / "site"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

LOOK = """() => ({
    pictures: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src),
    formulas: document.querySelectorAll("div.math, span.math").length,
    set: document.querySelectorAll("mjx-container").length,
    failed: document.querySelectorAll("mjx-merror, [data-mjx-error]").length,
    links: [...document.querySelectorAll("a[href]")].map(a => a.href),
    places: [...document.querySelectorAll("[id]")].map(e => e.id),
})"""


def visit(page: Page, path: Path, faults: list[str]) -> dict:
    """Load one page and say what is in it; faults are told as they are found."""
    name = path.relative_to(SITE)
    heard = []
    page.on("console", lambda m: heard.append(m.text) if m.type == "error" else None)
    page.add_init_script("localStorage.setItem('mode', 'light')")  # the theme warns of its absence
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.goto(path.as_uri(), wait_until="load")
    if page.evaluate("() => Boolean(document.querySelector('div.math, span.math'))"):
        page.wait_for_function("() => document.querySelector('mjx-container')", timeout=60_000)
        page.evaluate("() => MathJax.startup.promise")
    # pictures further down would wait until they come into view
    page.evaluate("() => { for (const i of document.images) i.loading = 'eager' }")
    page.wait_for_function("() => [...document.images].every(i => i.complete)", timeout=60_000)
    seen = page.evaluate(LOOK)
    faults += [f"{name}: console: {text}" for text in heard]
    faults += [f"{name}: picture not shown: {source[:100]}" for source in seen["pictures"]]
    if seen["failed"] or seen["set"] < seen["formulas"]:
        faults.append(f"{name}: {seen['formulas']} formulas, {seen['set']} set")
    return seen


def broken_links(pages: dict[Path, dict]) -> list[str]:
    """Links within the site that lead nowhere."""
    faults = []
    for path, seen in pages.items():
        for link in set(seen["links"]):
            address, place = urldefrag(link)
            parsed = urlparse(address)
            if parsed.scheme != "file":
                continue
            target = Path(unquote(parsed.path))
            if target.is_dir():
                target /= "index.html"
            if not target.exists():
                faults.append(f"{path.relative_to(SITE)}: link to {link}")
            elif place and target in pages and unquote(place) not in pages[target]["places"]:
                faults.append(f"{path.relative_to(SITE)}: no place {link}")
    return faults


def use(page: Page, faults: list[str]) -> None:
    """Enter by the front door, and search for a word."""
    page.goto((SITE / "index.html").as_uri())
    page.wait_for_url("**/README.html", timeout=30_000)
    page.goto((SITE / "search.html").as_uri() + "?q=RePaint")
    try:
        page.wait_for_selector("#search-results ul.search li a", timeout=30_000)
    except Exception as error:
        faults.append(f"search finds nothing for RePaint: {str(error).splitlines()[0]}")


def main() -> None:
    browser_path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser_path is None:
        sys.exit(f"no browser: expected one of {', '.join(BROWSERS)} (apt-get install chromium)")
    front = SITE / "index.html"  # leads on at once
    files = [p for p in SITE.rglob("*.html") if "_static" not in p.parts and p != front]
    if not files:
        sys.exit(f"no site in {SITE}: run `make site` first")
    faults, pages = [], {}
    with sync_playwright() as play:
        sandbox = [] if os.getuid() else ["--no-sandbox"]  # root has none
        browser = play.chromium.launch(executable_path=browser_path, args=sandbox)
        context = browser.new_context()

        def refuse(route: Route) -> None:
            faults.append(f"fetched from outside: {route.request.url}")
            route.abort()

        context.route("http*://**", refuse)
        for path in sorted(files):
            page = context.new_page()
            pages[path] = visit(page, path, faults)
            page.close()
        page = context.new_page()
        use(page, faults)
        browser.close()
    faults += broken_links(pages)
    for fault in faults:
        print(fault)
    links = sum(len(seen["links"]) for seen in pages.values())
    print(f"{len(pages)} pages, {links} links, {len(faults)} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
