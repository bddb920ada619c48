"""The page of results in a browser, from a file and served: tables, charts, colours, and no request to elsewhere."""

import http.client
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from dhkd.data.runs.config import settings_sha256
from dhkd.data.runs.place import RunsInFolder
from dhkd.data.runs.read import read_runs
from dhkd.pipeline.report.page import page_of
from dhkd.pipeline.report.serve import server_of

from tests.e2e.command_line import SMALL, dhkd, done

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
BROWSER = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs Debian's chromium")]

SIZES = [word if word != "student.epochs=2" else "student.epochs=1" for word in SMALL]
STRANGE = '<b onclick="x">&amp;'


@pytest.fixture(scope="module")
def swept(cache: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two objectives and two seeds, one whose name is markup, one that failed, and every analysis."""
    out = tmp_path_factory.mktemp("swept") / "a & <i>sweep"
    words = ["--cache", cache, "--out", out, "--set", "student.keep_every=1"]
    done("sweep", "digits", *SMALL, *words, "--grid", "objective=ce,binary-kl", "--seeds", 2)
    shutil.copytree(out / "objective=ce,seed=1", out / STRANGE)
    settings = (out / STRANGE / "config.yaml").read_text()
    (out / STRANGE / "config.yaml").write_text(settings.replace("seed: 1", "seed: 7"))
    dhkd(
        "sweep",
        "digits",
        *SIZES,
        *words[:-1],
        "student.keep_every=1",
        "--set",
        "objective=kd",
        "--grid",
        "student.lr=1e30",
    )
    views = out / "views"
    done("sweep", "digits", *SIZES, "--cache", cache, "--out", views, "--grid", "student.views=1,3", "--seeds", 2)
    done("report", "views", views, "--out", out / "report")
    shutil.rmtree(views)
    done("report", "conflict", out, "--cache", cache, "--samples", 40, "--cpu")
    for analysis, *more in (("correlation",), ("etf",), ("tsne", "--samples", 60)):
        done("report", analysis, out, "--teacher", teacher, "--cpu", *more)
    return out


@pytest.fixture(scope="module")
def written(swept: Path) -> Path:
    done("report", swept, "--html", swept / "page.html")
    return swept / "page.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield launched
        launched.close()


@contextmanager
def shown(browser: Any, address: str, **options: Any) -> Iterator[Any]:
    """The page at an address. It must make no other request, and report no error."""
    context = browser.new_context(**options)
    page = context.new_page()
    asked: list[str] = []
    messages: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(address)
    page.wait_for_selector(".chart .main-svg")
    yield page
    context.close()
    assert messages == []
    origin = address.rpartition("/")[0]
    assert all(url.startswith(origin) and (url.endswith(("/", "/version")) or url == address) for url in asked), asked


@pytest.fixture(scope="module")
def page(browser: Any, written: Path) -> Iterator[Any]:
    """The page from its file, opened once: tests leave filters, lines and opened runs as they found them."""
    with shown(browser, written.as_uri()) as page:
        yield page


def column(page: Any, table: str, number: int) -> list[str]:
    texts: list[str] = page.eval_on_selector_all(
        f"#{table} tbody tr:not([hidden])", f"rows => rows.map(row => row.cells[{number}].textContent.trim())"
    )
    return texts


def test_a_click_or_a_key_sorts(page: Any) -> None:
    page.click("#runs thead button:has-text('top-1')")
    number = page.locator("#runs thead th").all_inner_texts().index("top-1 %")
    up = [float(text) for text in column(page, "runs", number) if text]
    assert up == sorted(up)
    assert len(set(up)) > 1
    assert column(page, "runs", number)[-1] == "", "a failed run has no accuracy and comes last"
    assert page.get_attribute(f"#runs thead th >> nth={number}", "aria-sort") == "ascending"
    page.focus(f"#runs thead button >> nth={number}")
    page.keyboard.press("Enter")
    assert [float(text) for text in column(page, "runs", number) if text] == up[::-1]
    assert page.get_attribute(f"#runs thead th >> nth={number}", "aria-sort") == "descending"
    page.focus("#runs thead button >> nth=0")
    page.keyboard.press("Space")
    assert page.locator("#runs thead th[aria-sort]").count() == 1


def test_a_filter_leaves_rows_with_every_word(page: Any) -> None:
    everything = len(column(page, "runs", 0))
    page.get_by_label("Filter").nth(1).fill("binary-kl seed=1")
    assert column(page, "runs", 0) == ["objective=binary-kl,seed=1"]
    assert page.inner_text("#runs-count") == f"1 of {everything}"
    page.get_by_label("Filter").nth(1).fill("nothing like it")
    assert column(page, "runs", 0) == []
    page.get_by_label("Filter").nth(1).fill("")
    assert len(column(page, "runs", 0)) == everything


def test_a_run_opens_and_closes(page: Any, swept: Path) -> None:
    result = json.loads((swept / "objective=binary-kl,seed=0" / "result.json").read_text())
    page.get_by_role("button", name="objective=binary-kl,seed=0").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#run-chart .main-svg")
    assert page.inner_text("#run-name") == "objective=binary-kl,seed=0"
    settings = page.inner_text("#run-settings")
    assert result["sha256"] in settings
    assert "experiment.student.lr" in settings
    assert page.locator("#run-epochs tr").count() == 2
    page.keyboard.press("Escape")
    assert not page.is_visible("#run")


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.soak)])
def test_a_screen_reader_can_read_the_page(browser: Any, written: Path, scheme: str) -> None:
    """By axe's rules, for the page and for an opened run: names, roles, contrast, access by keyboard."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    with shown(browser, written.as_uri(), color_scheme=scheme, bypass_csp=True) as page:
        for opened in (False, True):
            if opened:
                page.locator(".open").first.click()
                page.wait_for_selector("#run-chart .main-svg")
            report = axe.run(page)
            assert report.violations_count == 0, report.generate_report()


def test_names_are_text(page: Any) -> None:
    assert page.inner_text("h1") == "a & <i>sweep"
    assert STRANGE in column(page, "runs", 0)
    page.click(f".open >> text={STRANGE}")
    assert page.inner_text("#run-name") == STRANGE
    assert page.locator("main b, dialog b, h1 i").count() == 0
    page.keyboard.press("Escape")


def ground(page: Any) -> int:
    """How bright the page's background is, from 0 to 255."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return max(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))


def ink_of_chart(page: Any) -> str:
    fill: str = page.evaluate("getComputedStyle(document.querySelector('.chart .xtick text')).fill")
    return fill


def test_dark_by_the_system_and_by_the_button(browser: Any, written: Path) -> None:
    with shown(browser, written.as_uri(), color_scheme="light") as page:
        assert ground(page) > 200
        before = ink_of_chart(page)
        page.click("#theme")
        assert ground(page) < 60
        page.wait_for_timeout(500)
        assert ink_of_chart(page) != before
        assert page.get_attribute("#theme", "aria-pressed") == "true"
    with shown(browser, written.as_uri(), color_scheme="dark") as page:
        assert ground(page) < 60
        page.click("#theme")
        assert ground(page) > 200


def test_a_phone_scrolls_tables_not_the_page(browser: Any, written: Path) -> None:
    with shown(browser, written.as_uri(), viewport={"width": 360, "height": 700}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate("Math.max(...[...document.querySelectorAll('.wide')].map(box => box.scrollWidth))") > 360


def test_every_analysis_is_shown_and_described_in_words(page: Any) -> None:
    headings = page.locator("main h2").all_inner_texts()
    for heading in (
        "Over training",
        "How many views",
        "Where the losses",
        "Correlation of",
        "Features in",
        "Neural",
    ):
        assert any(text.startswith(heading) for text in headings), heading
    charts = page.locator("main .chart")
    assert charts.count() > len(headings)
    assert all(charts.nth(number).locator(".main-svg").count() for number in range(charts.count()))
    alternatives = page.eval_on_selector_all("main .panels", "all => all.map(one => one.ariaLabel)")
    assert all(len(text) > 20 for text in alternatives)
    assert "ends at" in alternatives[1]


def test_accuracies_are_those_of_the_runs(page: Any, swept: Path) -> None:
    """A row for each kind of run, with its seeds' accuracies and their mean."""
    tops = [
        json.loads((swept / f"objective=binary-kl,seed={seed}" / "result.json").read_text())["last_top1"]
        for seed in (0, 1)
    ]
    traces = page.evaluate("document.querySelector('#accuracy .chart').data.map(one => [one.name, one.x])")
    means = dict(traces)
    assert means["binary-kl, a seed"] == pytest.approx(tops, rel=1e-4), "charts have five digits"
    assert means["binary-kl"] == pytest.approx([sum(tops) / 2], rel=1e-4)


def test_a_kind_of_run_has_one_colour_in_every_chart(page: Any) -> None:
    script = (
        "all => all.flatMap(one => one.data.filter(of => of.name).map(of => [of.name, (of.line || of.marker).color]))"
    )
    for name in ("ce", "binary-kl"):
        colours = {
            colour
            for chart in ("accuracy", "over-training", "where-the-losses-conflict", "neural-collapse")
            for named, colour in page.eval_on_selector_all(f"#{chart} .chart", script)
            if named == name
        }
        assert len(colours) == 1, name


def visible(page: Any) -> list[list[str]]:
    """The names of the lines that are visible in each panel of the curves."""
    panels: list[list[str]] = page.eval_on_selector_all(
        "#over-training .chart",
        "all => all.map(one => one.data.filter(line => line.visible && line.name).map(line => line.name))",
    )
    return panels


def test_the_legend_hides_a_line_in_every_panel(page: Any) -> None:
    assert visible(page) == [["binary-kl", "ce"]] * 3
    button = page.get_by_role("group", name="Lines of Over training").get_by_role("button", name="ce", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    assert (button.get_attribute("aria-pressed"), visible(page)) == ("false", [["binary-kl"]] * 3)
    page.keyboard.press("Enter")
    assert (button.get_attribute("aria-pressed"), visible(page)) == ("true", [["binary-kl", "ce"]] * 3)


def test_a_failed_run_is_among_the_warnings(page: Any) -> None:
    assert "student.lr=1e30 failed: loss term" in page.inner_text(".warnings")


def test_runs_of_two_caches_carry_a_warning(browser: Any, swept: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    for name in ("objective=binary-kl,seed=0", "objective=binary-kl,seed=1"):
        subprocess.run(["cp", "-r", swept / name, out / name] if out.exists() else ["cp", "-r", swept, out], check=True)
    config = out / "objective=binary-kl,seed=1" / "config.yaml"
    text = config.read_text()
    digest = json.loads((config.parent / "result.json").read_text())["cache"]["digest"]
    config.write_text(text.replace(digest, "f" * 64))
    result = json.loads((config.parent / "result.json").read_text())
    result["settings_sha256"] = settings_sha256(yaml.safe_load(config.read_text()))
    (config.parent / "result.json").write_text(json.dumps(result))
    done("report", out, "--html", out / "page.html")
    with shown(browser, (out / "page.html").as_uri()) as page:
        assert "runs of 2 caches" in page.inner_text(".warnings")


def test_an_analysis_that_was_edited_is_named_and_left_out(browser: Any, swept: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    shutil.copytree(swept, out)
    rows = (out / "report" / "etf.csv").read_text()
    (out / "report" / "etf.csv").write_text(rows.replace("seed", "speed").replace("0.", "zero"))
    (out / "report" / "views.csv").write_text("views,top1\n1,2\n")
    (out / "report" / "tsne.npz").write_bytes(b"PK")
    done("report", out, "--html", out / "page.html")
    with shown(browser, (out / "page.html").as_uri()) as page:
        warnings = page.inner_text(".warnings")
        for analysis in ("etf", "views", "tsne"):
            assert f"make it again with 'dhkd report {analysis}'" in warnings
        headings = page.locator("main h2").all_inner_texts()
        assert "Correlation of logits" in headings
        assert not {"Neural collapse", "How many views are enough", "Features in the plane"} & set(headings)


def test_a_page_needs_a_finished_run(tmp_path: Path) -> None:
    outcome = dhkd("report", tmp_path, "--html", tmp_path / "page.html")
    assert (outcome.code, (tmp_path / "page.html").exists()) == (1, False)
    assert "expected finished runs" in outcome.err


@contextmanager
def served(folder: Path) -> Iterator[int]:
    with server_of(RunsInFolder(folder), 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_served_page_follows_the_sweep(browser: Any, swept: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    out.mkdir()
    shutil.copytree(swept / "objective=ce,seed=0", out / "objective=ce,seed=0")
    with served(out) as port, shown(browser, f"http://127.0.0.1:{port}/") as page:
        assert column(page, "runs", 0) == ["objective=ce,seed=0"]
        shutil.copytree(swept / "objective=ce,seed=1", out / "objective=ce,seed=1")
        page.wait_for_selector("#runs tbody tr >> nth=1", timeout=120_000)
        page.get_by_label("Filter").nth(1).fill("seed=1")
        for _ in range(2):
            page.click("#runs thead button:has-text('run')")
        shutil.copytree(swept / "objective=binary-kl,seed=1", out / "objective=binary-kl,seed=1")
        page.wait_for_selector("#runs tbody tr >> nth=2", state="attached", timeout=120_000)
        page.wait_for_timeout(500)
        stays = ["objective=ce,seed=1", "objective=binary-kl,seed=1"]
        assert column(page, "runs", 0) == stays, "the filter and the order stay"
        page.get_by_role("button", name="binary-kl", exact=True).click()
        shutil.copytree(swept / "objective=binary-kl,seed=0", out / "objective=binary-kl,seed=0")
        page.wait_for_selector("#runs tbody tr >> nth=3", state="attached", timeout=120_000)
        page.wait_for_timeout(500)
        assert visible(page) == [["ce"]] * 3, "hidden lines stay hidden"
        page.get_by_role("button", name="binary-kl", exact=True).click()
        assert visible(page) == [["binary-kl", "ce"]] * 3


def test_it_says_how_long_the_rest_will_take(swept: Path, tmp_path: Path) -> None:
    """Runs take as long as the finished one. Two train at a time, one with half of its epochs; two have not begun."""
    out = tmp_path / "runs"
    out.mkdir()
    for name in ("objective=ce,seed=0", "objective=ce,seed=1", "objective=binary-kl,seed=0"):
        shutil.copytree(swept / name, out / name)
    shutil.copy(swept / "sweep.json", out)  # it also lists binary-kl's seed 1 and student.lr=1e30
    result = json.loads((out / "objective=ce,seed=0" / "result.json").read_text())
    result["seconds"] = 600.0
    (out / "objective=ce,seed=0" / "result.json").write_text(json.dumps(result))
    for number, name in enumerate(("objective=ce,seed=1", "objective=binary-kl,seed=0")):
        (out / name / "result.json").unlink()
        lines = (out / name / "metrics.jsonl").read_text().splitlines(keepends=True)
        (out / name / "metrics.jsonl").write_text("".join(lines[:number]))
    text = page_of(read_runs(out), out)
    assert "1 finished, 2 unfinished, 2 not begun. About 17.5 min of training left." in text


def test_an_empty_folder_is_served_until_there_is_something(browser: Any, tmp_path: Path) -> None:
    with served(tmp_path) as port:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        assert "No run is finished yet" in page.inner_text("main")
        context.close()


def asked(port: int, path: str, host: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", path, headers={"Host": host})
    status = connection.getresponse().status
    connection.close()
    return status


def test_only_this_machine_is_answered_and_only_the_page(swept: Path) -> None:
    with server_of(RunsInFolder(swept), 0) as unused:
        assert unused.server_address[0] == "127.0.0.1"
    with served(swept) as port:
        assert asked(port, "/version", f"127.0.0.1:{port}") == 200
        assert asked(port, "/version", f"localhost:{port}") == 200
        assert asked(port, "/version", f"elsewhere.example:{port}") == 403
        assert asked(port, "/page.html", f"127.0.0.1:{port}") == 404
        assert asked(port, "/../../etc/passwd", f"127.0.0.1:{port}") == 404
        outcome = dhkd("serve", swept, "--port", port)
        assert outcome.code == 2
        assert f"--port {port}: " in outcome.err
        assert "choose another" in outcome.err
