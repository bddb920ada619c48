"""The site: built strictly, every link followed, references complete, readable for everyone and on a phone."""

import http.server
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import click
import dhkd
import pytest
from dhkd.configs.schema import Experiment
from dhkd.pipeline.cli import cli
from dhkd.stages.train.objectives import OBJECTIVES

from tests.few import few

pytest.importorskip("material", reason="needs dhkd[docs]")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
BROWSER = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
KINDS = ("", "quickstart/", "reference/settings/", "reference/commands/", "reference/python/", "training/", "methods/")


@dataclass
class Page:
    """What links need to know of a page: its anchors, where it leads, and what it loads."""

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)


class Reader(HTMLParser):
    """Reads a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.page = Page()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.page.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.page.links.append(values["href"])
        elif tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload"):
            self.page.loaded.append(values["href"])
        elif "src" in values:
            self.page.loaded.append(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. A warning of the build is an error."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    out = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(out)))
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """What each page holds, by its file."""
    return {file: Reader(file.read_text()).page for file in site.rglob("*.html")}


def target(site: Path, page: Path, link: str) -> tuple[Path, str]:
    """The file and the anchor that a link on a page leads to."""
    place, anchor = urldefrag(link)
    file = site / place.lstrip("/") if place.startswith("/") else page.parent / unquote(place)
    file = (file if place else page).resolve()
    return file / "index.html" if file.is_dir() else file, unquote(anchor)


def dead(site: Path, pages: dict[Path, Page]) -> list[str]:
    """The links that lead to no file or to no anchor."""
    found = []
    for file, page in pages.items():
        for link in [*page.links, *(urldefrag(link)[0] for link in page.loaded)]:
            if link.startswith(("https://", "http://", "mailto:")):
                continue
            leads_to, anchor = target(site, file, link)
            at_top = anchor in ("", "__top")
            if not leads_to.is_file() or (not at_top and anchor not in pages.get(leads_to, Page()).anchors):
                found.append(f"{file.relative_to(site)}: {link}")
    return found


def test_no_link_is_dead(site: Path, pages: dict[Path, Page]) -> None:
    assert len(pages) > 25
    assert sum(len(page.links) for page in pages.values()) > 1000
    assert dead(site, pages) == []


def test_a_dead_link_is_found(site: Path) -> None:
    wrong = Page(
        {"here"}, ["#here", "#nowhere", "quickstart/", "quickstart/#nowhere", "nothing/"], ["site.css", "no.js"]
    )
    pages = {site / "index.html": wrong, site / "quickstart" / "index.html": Page({"there"})}
    assert [line.partition(": ")[2] for line in dead(site, pages)] == [
        *("#nowhere", "quickstart/#nowhere", "nothing/", "no.js")
    ]


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page], site: Path) -> None:
    """Fonts, scripts and pictures are the site's own."""
    assert [link for page in pages.values() for link in page.loaded if "//" in link] == []
    assert [file for file in site.rglob("*.css") if "url(http" in file.read_text()] == []


def keys(model: Any, prefix: str = "") -> Iterator[str]:
    for name, one in model.model_fields.items():
        yield f"{prefix}{name}"
        for member in (one.annotation, *getattr(one.annotation, "__args__", ())):
            if hasattr(member, "model_fields"):
                yield from keys(member, f"{prefix}{name}.")


def test_every_setting_is_in_the_reference(site: Path, pages: dict[Path, Page]) -> None:
    """By its key; sections are headings, whose anchors are their names."""
    anchors = pages[site / "reference" / "settings" / "index.html"].anchors
    assert [key for key in keys(Experiment) if key not in anchors] == []


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{path}{name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name}-")


def test_every_command_and_option_is_in_the_reference(site: Path, pages: dict[Path, Page]) -> None:
    anchors = pages[site / "reference" / "commands" / "index.html"].anchors
    expected = [
        name if option is None else f"{name}{option}"
        for name, command in commands(cli)
        for option in (None, *(max(one.opts, key=len) for one in command.params if isinstance(one, click.Option)))
    ]
    assert len(expected) > 200
    assert [name for name in expected if name not in anchors] == []


def test_every_objective_and_public_name_is_in_the_reference(site: Path, pages: dict[Path, Page]) -> None:
    of_methods = pages[site / "reference" / "objectives" / "index.html"].anchors
    assert OBJECTIVES.keys() - of_methods == set()
    of_python = pages[site / "reference" / "python" / "index.html"].anchors
    public = {f"dhkd.{name}" for name in dhkd.__all__ if name not in ("__version__", "losses")}
    assert public - of_python == set()
    assert "dhkd.losses.binary_kl_norm" in of_python


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if BROWSER is None:
        pytest.skip("needs Debian's chromium")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.mark.parametrize(
    ("kind", "scheme"),
    few([(kind, scheme) for scheme in ("light", "dark") for kind in KINDS], [("", "light"), ("training/", "dark")]),
)
def test_everyone_can_read_a_page_of_each_kind_on_a_phone(browser: Any, address: str, kind: str, scheme: str) -> None:
    """By axe's rules; nothing but tables and code scrolls sideways, and nothing is asked of other hosts."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}{kind}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    report = axe.run(page)
    assert report.violations_count == 0, report.generate_report()
    context.close()
    assert [url for url in asked if not url.startswith(address)] == []


def test_a_search_leads_to_a_setting(browser: Any, address: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    page.get_by_role("textbox", name="Search").click()
    page.keyboard.type("label_smoothing")
    result = page.locator(".md-search-result__link[href*='label_smoothing']").first
    result.wait_for(timeout=20_000)
    assert "reference/settings/" in result.get_attribute("href")
    context.close()
