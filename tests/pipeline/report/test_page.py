"""The page without a browser: its tables, texts and charts, from runs that were made by hand."""

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dhkd.data.runs.read import Run
from dhkd.data.runs.result import RunCache
from dhkd.pipeline.report.arrays import write_arrays
from dhkd.pipeline.report.page import page_of, write_page
from dhkd.pipeline.report.rows import ConflictRow, EtfRow, ViewsRow, write_rows

from tests.runs import epochs_of, result_of, run_of

CACHE = RunCache("d1" * 32, views=3, samples=1000, teacher="resnet56", teacher_sha256="3f" * 32, row_bytes=200)


def finished(objective: str, seed: int, top1: float, **more: Any) -> Run:
    result = result_of(top1, cache=CACHE, seconds=60.0, hardware="a CPU", versions={"torch": "2.11"}, sha256="9e" * 32)
    metrics = epochs_of({"top1": top1, "loss": 2.5})
    name = f"{objective}-{seed}"
    return run_of(seed, objective=objective, name=name, metrics=metrics, result=result, student__epochs=1, **more)


RUNS = [finished("ce", 0, 60.0), finished("ce", 1, 62.0), finished("kd", 0, 63.0), finished("kd", 1, 66.0)]


class Parts(HTMLParser):
    """The tables, headings and paragraphs of a page, and the data of its script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: dict[str, list[str]] = {}
        self._rows: list[list[str]] | None = None
        self._tag = ""
        self.feed(html)
        (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
        self.data: dict[str, Any] = json.loads(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        if tag == "table":
            self._rows = self.tables.setdefault(dict(attrs).get("id") or "", [])
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif tag in ("th", "td") and self._rows:
            self._rows[-1].append("")
        elif tag in ("p", "h2", "li", "dt", "dd", "caption"):
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._rows = None
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._rows and self._rows[-1] and data.strip():
            self._rows[-1][-1] += data.strip()
        elif self._tag in self.texts:
            self.texts[self._tag][-1] += data


def page(runs: list[Run], folder: Path, **options: Any) -> Parts:
    return Parts(page_of(runs, folder, **options))


def test_the_comparison_is_a_table(tmp_path: Path) -> None:
    header, ce, kd = page(RUNS, tmp_path).tables["comparison"]
    assert header == ["objective", "seeds", "top-1 %", "best %", "against objective=ce", "published %", "seconds"]
    assert ce == ["ce", "2", "61.00 ± 12.71 (1.41)", "61.00 ± 12.71 (1.41)", "", "69.06", "60.0"]
    assert kd[4:] == ["+3.50 ± 6.35, within noise", "70.66", "60.0"]


def test_every_run_has_a_row_and_details(tmp_path: Path) -> None:
    runs = [*RUNS, run_of(2, objective="kd", name="hot", failure="loss term kd is nan", student__epochs=1)]
    parts = page(runs, tmp_path)
    header, *rows = parts.tables["runs"]
    assert header == ["run", "objective", "state", "top-1 %", "best %", "top-5 %", "epochs", "seconds"]
    assert rows[0] == ["ce-0", "ce", "finished", "60.00", "60.00", "90.00", "1", "60.0"]
    assert rows[-1] == ["hot", "kd", "failed", "", "", "", "", ""]
    details = parts.data["runs"]["ce-0"]
    assert (details["columns"], details["epochs"]) == (["top1", "loss"], [[60, 2.5]])
    settings = dict(details["settings"])
    shared = dict(parts.data["shared"])
    assert shared["experiment.student.architecture"] == '"resnet20"', "once on the page, as all runs have it"
    assert not shared.keys() & settings.keys()
    assert (settings["sha256"], settings["hardware"], settings["last_top1"]) == ("9e" * 32, "a CPU", "60.0")
    assert settings["experiment.objective"] == '"ce"'
    assert details["curves"] == {"test top-1 (%)": [60], "training loss": [2.5]}
    assert parts.data["runCharts"].keys() == details["curves"].keys()
    assert dict(parts.data["runs"]["hot"]["settings"])["failure"] == "loss term kd is nan"


def test_averages_of_weights_have_columns_and_a_chart_where_a_run_has_one(tmp_path: Path) -> None:
    averaged = result_of(50.0, last_ema_top1=52.0, best_ema_top1=53.0, planned_epochs=9)
    epochs = epochs_of({"top1": 50.0, "loss": 1.0, "ema_top1": 52.0})
    run = run_of(0, name="averaged", objective="kd", student__ema__decay=0.9, metrics=epochs, result=averaged)
    parts = page([*RUNS, run], tmp_path)
    header, *rows = parts.tables["runs"]
    assert header[-2:] == ["ema top-1 %", "ema best %"]
    assert [row[-2:] for row in rows] == [*([["", ""]] * len(RUNS)), ["52.00", "53.00"]]
    compared, *kinds = parts.tables["comparison"]
    column = compared.index("ema %")
    assert sorted(row[column] for row in kinds) == ["", "", "52.00"]
    details = parts.data["runs"]["averaged"]
    assert details["curves"]["test top-1 (%), average of weights"] == [52]
    assert dict(details["settings"])["stopped early"] == "after 1 of 9 epochs"
    assert "ema %" not in page(RUNS, tmp_path).tables["comparison"][0]


def test_cost_and_provenance(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"commands": ["dhkd sweep …"], "runs": []}))
    parts = page(RUNS, tmp_path)
    facts = dict(zip(parts.texts["dt"], parts.texts["dd"], strict=True))
    assert list(facts.values())[:4] == ["3,000", "2,000", "0.6 MB", "240 s"]
    assert facts["Command"] == "dhkd sweep …"
    assert facts["Cache"] == f"{CACHE.digest} (3 views of 1,000 samples)", "once, although four runs used it"
    assert (facts["Teacher"], facts["Hardware"]) == (f"resnet56 ({CACHE.teacher_sha256})", "a CPU")
    assert facts["Versions"] == "torch 2.11"


def test_the_summary_counts_runs_and_estimates_the_time_left(tmp_path: Path) -> None:
    """Finished runs took a minute. Two train at a time, one of them has half of its epochs, and two have not begun."""
    begun = [
        run_of(2, name="begun", student__epochs=2, metrics=epochs_of({"top1": 1.0})),
        run_of(3, name="new", student__epochs=2),
    ]
    runs = [*RUNS, *begun]
    names = [*(run.name for run in runs), "waiting-1", "waiting-2"]
    (tmp_path / "sweep.json").write_text(json.dumps({"commands": [], "runs": names}))
    summary = page(runs, tmp_path).texts["p"][0]
    assert summary == (
        "Students of a cached teacher: 4 finished, 2 unfinished, 2 not begun. About 1.8 min of training left."
    )  # fmt: skip
    assert page(RUNS, tmp_path / "none").texts["p"][0] == "Students of a cached teacher: 4 finished."


def test_a_page_of_nothing(tmp_path: Path) -> None:
    parts = page([], tmp_path)
    assert parts.texts["p"][0] == "Students of a cached teacher: no run yet."
    assert "No run is finished yet." in parts.texts["p"]
    assert parts.data["charts"] == {}


def test_text_is_never_markup(tmp_path: Path) -> None:
    strange = "<b>&amp;</script>"
    html = page_of([finished("ce", 0, 60.0, description=strange), run_of(1, name=strange, student__epochs=1)], tmp_path)
    assert "<b>" not in html.replace("\\u003c", "").partition('<script type="application/json"')[0]
    assert Parts(html).tables["runs"][2][0] == strange
    assert strange in Parts(html).data["runs"]


def write_analyses(folder: Path) -> None:
    write_rows(folder / "views.csv", ViewsRow, [ViewsRow("kd", 3, 2, 61.0, 1.0, 2.0, 450, 0.5, 9000)])
    conflict = ConflictRow("kd", 0, 5, "features", 0.25, 0.5, 1.0, 1.0, None, None)
    write_rows(folder / "conflict.csv", ConflictRow, [conflict])
    write_rows(folder / "etf.csv", EtfRow, [EtfRow("kd", 0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)])
    write_arrays(folder / "correlation.npz", {"teacher": np.eye(2), "kd": np.full((2, 2), 0.125)})
    write_arrays(folder / "tsne.npz", {"teacher": np.zeros((3, 2)), "kd": np.ones((3, 2)), "labels": np.arange(3)})


TITLES = {
    "views": "How many views are enough",
    "conflict": "Where the losses conflict",
    "correlation": "Correlation of logits",
    "tsne": "Features in the plane",
    "etf": "Neural collapse",
}


def test_analyses_beside_the_runs_are_shown_and_told_in_words(tmp_path: Path) -> None:
    write_analyses(tmp_path / "report")
    html = page_of(RUNS, tmp_path)
    parts = Parts(html)
    assert [title for title in parts.texts["h2"] if title in TITLES.values()] == list(TITLES.values())
    assert "Beware" not in parts.texts["h2"]
    for words in (
        "kd, 3 views: 61.0 %",
        "mean cosine on features of kd, from 0.25 to 0.25",
        "kd: mean absolute difference 0.125",
        "Scattered points of teacher, kd",
        "within class: kd 1.00; features etf: kd 2.00",
        "ce ends at 61.0 %; kd ends at 64.5 %",
        "3: 9.00 kB and 30 min of the teacher.",
    ):
        assert words in html, words
    assert {name: len(chart["figures"]) for name, chart in parts.data["charts"].items()} == {
        "accuracy": 1,
        "over-training": 2,
        "how-many-views-are-enough": 1,
        "where-the-losses-conflict": 1,
        "correlation-of-logits": 1,
        "features-in-the-plane": 2,
        "neural-collapse": 6,
    }
    assert [entry[0] for entry in parts.data["charts"]["over-training"]["legend"]] == ["ce", "kd"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("views.csv", b"views,top1\n1,2\n"),
        ("conflict.csv", b"runs,seed,epochs,on,cosine\nkd,0,1,features,zero\n"),
        ("etf.csv", b"\xff\xfe"),
        ("correlation.npz", b"PK"),
        ("tsne.npz", b""),
    ],
)
def test_an_analysis_that_was_edited_is_named_and_left_out(name: str, content: bytes, tmp_path: Path) -> None:
    write_analyses(tmp_path / "report")
    (tmp_path / "report" / name).write_bytes(content)
    parts = page(RUNS, tmp_path)
    (warning,) = parts.texts["li"]
    assert warning.startswith(f"report/{name}: expected an analysis's figures, found others (")
    analysis = name.partition(".")[0]
    assert warning.endswith(f"; make it again with 'dhkd report {analysis}'")
    assert set(TITLES.values()) - set(parts.texts["h2"]) == {TITLES[analysis]}


def test_only_a_served_page_asks_for_anything(tmp_path: Path) -> None:
    write_page(RUNS, tmp_path, tmp_path / "page.html", None)
    written, served = (tmp_path / "page.html").read_text(), page_of(RUNS, tmp_path, version="v1")
    assert "connect-src 'none'" in unescape(written)
    assert "connect-src 'self'" in unescape(served)
    assert (Parts(written).data["version"], Parts(served).data["version"]) == (None, "v1")
