"""Runs side by side: order and names of rows, baselines, the paper's figures, warnings and cost."""

import json
import re

import pytest
from dhkd.data.errors import ConfigError
from dhkd.data.runs.read import Run
from dhkd.data.runs.result import RunCache
from dhkd.pipeline.cli.tables.runs import run_cells, run_columns
from dhkd.pipeline.report.comparison import Cost, compare, comparison_json
from dhkd.pipeline.report.panels import accuracy_values

from tests.runs import result_of, run_of


def test_the_papers_figure_is_that_of_pair_and_method() -> None:
    runs = [run_of(0, 68.0, objective="ce"), run_of(0, 70.0), run_of(0, 50.0, student__architecture="resnet8")]
    rows = {row.name: row.published for row in compare(runs).rows}
    assert rows == {"resnet8, kd": None, "resnet20, ce": 69.06, "resnet20, kd": 70.66}


@pytest.mark.parametrize(("top1", "marks"), [(70.0, {"ce": 69.06, "kd": 70.66}), (30.0, {})])
def test_a_picture_shows_the_papers_figure_where_runs_come_near_it(top1: float, marks: dict[str, float]) -> None:
    runs = [
        run_of(seed, top1 - 0.5 * seed - (name == "ce"), objective=name) for name in ("ce", "kd") for seed in (0, 1)
    ]
    values = accuracy_values(runs, compare(runs))
    assert values.marks == marks
    assert values.of_seeds == {"ce": [top1 - 1, top1 - 1.5], "kd": [top1, top1 - 0.5]}


def test_rows_are_sorted_as_people_do_with_the_baseline_first() -> None:
    runs = [
        run_of(0, 1.0, student__lr=lr, objective=objective, student__batch_size=size)
        for lr in (0.1, 0.05)
        for objective in ("ce", "kd", "dkd")
        for size in (128, 64)
    ]
    compared = compare(runs, "objective=kd")
    assert compared.axes == ["lr", "batch_size", "objective"]
    assert [tuple(row.values.values()) for row in compared.rows] == [
        (lr, size, objective) for lr in (0.05, 0.1) for size in (64, 128) for objective in ("kd", "ce", "dkd")
    ]
    assert compared.rows[0].name == "kd, lr=0.05, batch_size=64"


def test_a_kind_of_run_is_one_row_with_its_seeds() -> None:
    runs = [
        run_of(seed, 60 + 2 * seed, name=f"{objective}-{seed}", objective=objective)
        for objective in ("kd", "ce")
        for seed in (1, 0)
    ]
    ce, kd = compare(runs).rows
    assert (ce.name, ce.values, ce.runs, ce.seeds) == ("ce", {"objective": "ce"}, ["ce-0", "ce-1"], [0, 1])
    assert (kd.last_top1.count, kd.last_top1.mean, kd.last_top1.deviation) == (2, 61.0, pytest.approx(2**0.5))
    assert kd.seconds == 1.0


def test_last_and_best_are_not_confused() -> None:
    (row,) = compare([run_of(0, result=result_of(60.0, best_top1=65.0))]).rows
    assert (row.name, row.last_top1.mean, row.best_top1.mean, row.last_top1.half) == ("all", 60.0, 65.0, None)


def test_averages_of_weights_are_a_column_where_each_run_of_a_row_kept_one() -> None:
    kept = [run_of(seed, objective="kd", result=result_of(50.0, last_ema_top1=60.0 + seed)) for seed in range(2)]
    some = [run_of(0, objective="rkd", result=result_of(50.0, last_ema_top1=60.0)), run_of(1, 50.0, objective="rkd")]
    compared = compare([*kept, *some])
    by_name = {row.name: row.last_ema_top1 for row in compared.rows}
    assert by_name["kd"] is not None
    assert (by_name["kd"].mean, by_name["rkd"]) == (60.5, None)
    cells = {row.name: run_cells(row, compared) for row in compared.rows}
    place = run_columns(compared).index("ema")
    assert cells["kd"][place].startswith("60.50")
    assert cells["rkd"][place] == ""
    plain = comparison_json(compare(some[1:]))
    assert "last_ema_top1" not in plain["rows"][0]


def test_of_two_runs_with_one_seed_the_last_counts() -> None:
    (row,) = compare([run_of(0, 60.0, name="a"), run_of(0, 70.0, name="b")]).rows
    assert (row.runs, row.seeds, row.last_top1.mean) == (["a", "b"], [0], 70.0)


def test_without_a_name_the_baseline_is_cross_entropy_else_kd() -> None:
    of = {name: run_of(0, 60.0, objective=name) for name in ("ce", "kd", "dkd", "dhkd")}
    assert compare([of["kd"], of["ce"], of["dkd"]]).baseline == "objective=ce"
    assert compare([of["dkd"], of["kd"]]).baseline == "objective=kd"
    assert compare([of["dkd"], of["dhkd"]]).baseline is None
    assert compare([of["ce"]]).baseline is None, "a single kind has no axis"


def test_differences_are_to_the_row_that_differs_in_nothing_else() -> None:
    top1 = {("ce", 0.1): 50.0, ("kd", 0.1): 53.0, ("ce", 0.05): 40.0, ("kd", 0.05): 41.0}
    runs = [run_of(0, value, objective=objective, student__lr=lr) for (objective, lr), value in top1.items()]
    differences = {row.name: row.difference for row in compare(runs).rows}
    assert {name: found and (found.mean, found.verdict) for name, found in differences.items()} == {
        "ce, lr=0.05": None,
        "kd, lr=0.05": (1.0, "one seed"),
        "ce, lr=0.1": None,
        "kd, lr=0.1": (3.0, "one seed"),
    }


def test_a_row_whose_baseline_is_not_there_has_no_difference() -> None:
    runs = [run_of(0, 50.0, objective="ce", student__lr=0.1), run_of(0, 51.0, student__lr=0.2)]
    assert [row.difference for row in compare(runs).rows] == [None, None]


def test_options_of_other_objectives_are_no_difference_to_the_baseline() -> None:
    option = {"objectives.dkd.beta": 8.0}
    runs = [run_of(0, 50.0, objective="ce"), run_of(0, 52.0, objective="dkd", **option)]
    differences = {row.name: row.difference for row in compare(runs).rows}
    found = differences["dkd, beta=8.0"]
    assert found is not None
    assert found.mean == 2.0
    # An option of the baseline itself is one.
    runs = [run_of(0, 50.0, objective="kd"), run_of(0, 52.0, objective="dkd", **{"objectives.kd.temperature": 2.0})]
    assert all(row.difference is None for row in compare(runs, "objective=kd").rows)


def test_own_losses_and_their_options_have_a_baseline() -> None:
    runs = [
        run_of(0, 60.0),
        run_of(0, 61.0, objective="kd + 2 * nets/my.py:far", **{"objectives__nets/my__py:far__margin": 2}),
        run_of(0, 62.0, objective="kd + 2 * nets/my.py:far", **{"objectives__nets/my__py:far__margin": 3}),
    ]
    differences = [row.difference for row in compare(runs).rows]
    assert differences[0] is None
    assert [one.mean for one in differences[1:] if one is not None] == pytest.approx([1.0, 2.0])


def test_code_is_an_axis_only_where_one_name_had_two_contents() -> None:
    def run(seed: int, top1: float, objective: str, **hashes: str) -> Run:
        code = {f"code.{name}.py:far.{key}": value for name, value in hashes.items() for key in ("sha256", "module")}
        return run_of(seed, top1, objective=objective, run=code)

    alike = [run(0, 60.0, "kd"), run(0, 61.0, "a.py:far", a="1" * 64), run(0, 62.0, "b.py:far", b="2" * 64)]
    assert compare(alike).axes == ["objective"]
    changed = [run(0, 61.0, "a.py:far", a="1" * 64), run(1, 62.0, "a.py:far", a="2" * 64)]
    rows = compare(changed).rows
    assert [row.values["run.code.a.py:far.sha256"] for row in rows] == ["1" * 12, "2" * 12]


def test_a_run_without_a_cache_is_compared_with_runs_of_any() -> None:
    runs = [
        run_of(0, 50.0, objective="ce", run={"cache": None, "views": None}),
        run_of(0, 51.0, objective="kd", run={"cache": "a" * 64, "views": 3}),
    ]
    compared = compare(runs)
    assert (compared.axes, compared.warnings) == (["objective"], [])
    runs.append(run_of(0, 52.0, objective="kd", run={"cache": "b" * 64, "views": 3}))
    compared = compare(runs)
    assert compared.axes == ["run.cache", "objective"]
    assert [row.values["run.cache"] for row in compared.rows] == [None, "a" * 12, "b" * 12]
    assert [row.difference and row.difference.mean for row in compared.rows] == [None, 1.0, 2.0]
    assert compared.warnings == ["runs of 2 caches (aaaaaaaaaaaa, bbbbbbbbbbbb): what differs may be the caches' doing"]


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ("objective", "--baseline objective: expected AXIS=VALUE"),
        ("objectiv=kd", "unknown axis 'objectiv': did you mean 'objective'?"),
        ("objective=dkdd", "unknown value 'dkdd': did you mean 'dkd'?"),
    ],
)
def test_a_baseline_that_is_none_is_refused(baseline: str, message: str) -> None:
    runs = [run_of(0, 50.0, objective=objective) for objective in ("kd", "dkd")]
    with pytest.raises(ConfigError, match=re.escape(message)):
        compare(runs, baseline)


def test_a_baseline_may_be_a_number() -> None:
    runs = [run_of(0, 50.0 + lr, student__lr=lr) for lr in (0.1, 0.05)]
    compared = compare(runs, "lr=0.05")
    assert compared.baseline == "lr=0.05"
    assert [row.difference and row.difference.mean for row in compared.rows] == [None, pytest.approx(0.05)]


def test_runs_that_are_left_out_are_named() -> None:
    runs = [
        run_of(0, 50.0),
        run_of(1, name="slow"),
        run_of(2, name="waiting"),
        run_of(3, name="hot", failure="loss term kd is nan"),
        run_of(4, name="edited", damage="result.json: one of them was edited"),
    ]
    compared = compare(runs)
    assert compared.rows[0].seeds == [0]
    assert compared.warnings == [
        "edited: result.json: one of them was edited",
        "hot failed: loss term kd is nan",
        "2 unfinished runs are left out: slow, waiting",
    ]


def test_the_cost_counts_each_cache_once_and_each_epoch_of_a_student() -> None:
    first, second = RunCache("a", views=3, samples=100), RunCache("b", views=10, samples=100)
    runs = [
        run_of(0, objective="kd", result=result_of(50.0, cache=first, epochs=5, seconds=2.5)),
        run_of(1, objective="kd", result=result_of(50.0, cache=first, epochs=7)),
        run_of(2, objective="kd", result=result_of(50.0, cache=second, epochs=1)),
        # These never asked a cache: no teacher, a live teacher, or no cache.
        run_of(0, objective="ce", result=result_of(50.0, cache=first, epochs=99)),
        run_of(0, objective="rkd", result=result_of(50.0, cache=first, epochs=99, live=("embedding",))),
        run_of(0, objective="at", result=result_of(50.0, epochs=99)),
    ]
    assert compare(runs).cost == Cost(300 + 1000, 100 * (5 + 7 + 1), 2.5 + 5)


def test_nothing_finished_is_an_empty_comparison() -> None:
    compared = compare([run_of(0, name="begun")])
    assert (compared.rows, compared.baseline, compared.cost) == ([], None, Cost(0, 0, 0))
    assert compared.warnings == ["1 unfinished runs are left out: begun"]


def test_json_has_every_field_in_order() -> None:
    """What `dhkd report DIR --json` prints; scripts read it."""
    runs = [run_of(seed, 60.0 + seed * (name == "kd"), name=f"{name}{seed}", objective=name)
            for name in ("ce", "kd") for seed in (0, 1)]  # fmt: skip
    plain = comparison_json(compare(runs))
    assert json.loads(json.dumps(plain)) == plain, "plain values only"
    ce, kd = plain.pop("rows")
    assert list(ce) == [
        "name", "values", "runs", "seeds", "last_top1", "best_top1", "difference", "published", "seconds"
    ]  # fmt: skip
    assert list(ce["last_top1"].items()) == [("count", 2), ("mean", 60.0), ("deviation", 0.0), ("half", 0.0)]
    assert ce["difference"] is None
    assert list(kd["difference"]) == ["count", "mean", "deviation", "half", "verdict"]
    assert (kd["difference"]["mean"], kd["difference"]["verdict"]) == (0.5, "within noise")
    assert kd["published"] == 70.66
    assert list(plain.items()) == [
        ("axes", ["objective"]),
        ("baseline", "objective=ce"),
        ("warnings", []),
        ("cost", {"teacher_forwards_cached": 0, "teacher_forwards_live": 0, "seconds": 4.0}),
    ]


def test_runs_that_saw_other_views_are_other_rows_and_named() -> None:
    """As after an extension of the cache in the middle of a sweep; a run without a cache is compared with all."""

    def seen(seed: int, views: int, top1: float, objective: str) -> Run:
        return run_of(seed, top1, objective=objective, run={"views": views, "cache": "d1" * 32}, name=f"{views}-{top1}")

    runs = [seen(0, 4, 50.0, "ce"), seen(0, 4, 53.0, "kd"), seen(1, 4, 54.0, "kd"), seen(0, 9, 60.0, "kd")]
    compared = compare(runs)
    assert compared.axes == ["views", "objective"]
    rows = {(row.values["objective"], row.values["views"]): row for row in compared.rows}
    assert [len(rows[key].seeds) for key in (("ce", 4), ("kd", 4), ("kd", 9))] == [1, 2, 1]
    assert rows["kd", 4].difference is not None
    assert rows["kd", 4].difference.mean == 3.0
    assert rows["kd", 9].difference is None, "no run of cross-entropy saw as many"
    says = "runs saw 4, 9 views of their cache: each is compared with runs that saw as many, or no cache"
    assert compared.warnings == [says]


def test_the_same_run_twice_is_named() -> None:
    twice = [run_of(0, 50.0, name="a"), run_of(0, 60.0, name="b")]
    assert compare(twice).warnings == ["several runs of one kind and seed (all, seed 0): the last of each counts"]


def test_a_cache_that_grew_costs_what_it_is_now() -> None:
    grown = [RunCache("a", views=views, samples=100) for views in (9, 4)]
    runs = [run_of(seed, result=result_of(50.0, cache=cache, epochs=1)) for seed, cache in enumerate(grown)]
    assert compare(runs).cost.teacher_forwards_cached == 900
