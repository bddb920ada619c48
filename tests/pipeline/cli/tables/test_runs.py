"""What `dhkd report` prints of comparisons and analyses."""

from dhkd.data.runs.result import RunCache
from dhkd.pipeline.cli.tables.runs import analysis_table, runs_table
from dhkd.pipeline.report.comparison import compare
from dhkd.pipeline.report.rows import Analysis, EtfRow

from tests.runs import result_of, run_of


def test_a_comparison_has_a_line_for_each_kind_and_says_what_to_beware_of() -> None:
    cache = RunCache("d1" * 32, views=3, samples=1000)
    runs = [
        run_of(0, objective="ce", result=result_of(60.0, best_top1=61.0)),
        run_of(1, objective="ce", result=result_of(60.0, best_top1=61.0)),
        run_of(0, objective="kd", result=result_of(63.0, seconds=2.25, epochs=40, cache=cache)),
        run_of(1, objective="kd", failure="loss term kd is nan", name="hot"),
    ]
    lines = [" ".join(line.split()) for line in runs_table(compare(runs)).splitlines()]
    assert lines == [
        "objective seeds top-1 % best against objective=ce published seconds",
        "ce 2 60.00 ± 0.00 (0.00) 61.00 ± 0.00 (0.00) 69.06 1.0",
        "kd 1 63.00 63.00 +3.00, one seed 70.66 2.2",
        "mean ± half of the 95 % interval over seeds (standard deviation)",
        "teacher: 3,000 forwards into the cache; live, these runs would have made 40,000",
        "beware: hot failed: loss term kd is nan",
    ]


def test_a_column_that_would_be_empty_is_left_out() -> None:
    """No baseline, no figure of the paper, one seed, no teacher."""
    runs = [run_of(0, 60.0, data__source="digits", student__lr=lr) for lr in (0.1, None)]
    lines = [" ".join(line.split()) for line in runs_table(compare(runs)).splitlines()]
    assert lines == ["lr seeds top-1 % best seconds", "– 1 60.00 60.00 1.0", "0.1 1 60.00 60.00 1.0"]


def test_an_analysis_has_its_rows_and_its_files() -> None:
    rows = [EtfRow("teacher", None, 1.23456, 2.0, 3.0, 4.0, 5.0, 1e-9), EtfRow("kd", 12, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)]
    lines = [" ".join(line.split()) for line in analysis_table(Analysis(rows, ["etf.csv", "etf.png"])).splitlines()]
    assert lines == [
        "runs seed within_class features_etf classifier_etf norms angles duality",
        "teacher None 1.235 2 3 4 5 1e-09",
        "kd 12 1 2 3 4 5 6",
        "etf.csv",
        "etf.png",
    ]
