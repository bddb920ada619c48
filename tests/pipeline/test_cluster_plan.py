"""The arithmetic of a plan for a cluster, against numbers worked out by hand."""

from dataclasses import replace
from typing import Any

import pytest
from dhkd.configs.load import load_experiment
from dhkd.data.errors import ConfigError
from dhkd.pipeline.cli.tables.plan import plan_table
from dhkd.pipeline.cluster_plan import Cluster, ClusterPlan
from dhkd.pipeline.measure import Rates
from dhkd.pipeline.plan import CachePlan, make_plan

CLUSTER = Cluster("ray", workers=10, price_gpu_hour=2, price_puts=5, price_gets=1, price_gb_month=3, price_gb_out=10)


def plan_of(cluster: Cluster = CLUSTER, *overrides: str, **options: Any) -> CachePlan:
    rates = options.pop("rates", Rates(teacher=1000.0, student=500.0))
    experiment = load_experiment("imagenet/resnet34-resnet18", ["cache.views=100", *overrides])
    return make_plan(experiment, rates=rates, cluster=cluster, **options)


def on_cluster(cluster: Cluster = CLUSTER, *overrides: str, **options: Any) -> ClusterPlan:
    plan = plan_of(cluster, *overrides, **options).cluster
    assert plan is not None
    return plan


def test_stage_one() -> None:
    rows, plan = 1_281_167 * 100, on_cluster()
    traffic = plan.stage_one.traffic
    assert plan.objects == 2 * 153 * 100
    assert (traffic.puts, traffic.gets, traffic.heads, traffic.lists) == (30_602, 30_600, 15_300, 62)
    assert traffic.bytes_written == traffic.bytes_read == rows * 2004
    assert plan.stage_one.bound_by == "teacher"
    assert plan.stage_one.hours_of["teacher"] == pytest.approx(rows / 10_000 / 3600)
    assert plan.stage_one.hours_of["check"] == pytest.approx(rows * 2004 / 5e9 / 3600), "10 workers of 500 MB/s"
    assert plan.units_per_worker == 15_300 / 4 / 10
    assert plan.students is None


def test_students_read_each_view_once() -> None:
    plan = on_cluster(students=25)
    assert plan.students is not None
    assert plan.students.traffic.bytes_read == 25 * 100 * 1_281_167 * 2004, "100 epochs of 100 views"
    assert plan.students.hours == pytest.approx(3 * 1_281_167 * 100 / 500 / 3600), "three after the other"


def test_money() -> None:
    plan = on_cluster(students=2)
    assert plan.money.stage_one == pytest.approx(2 * 10 * plan.stage_one.hours)
    assert plan.money.students == pytest.approx(2 * 2 * 1_281_167 * 100 / 500 / 3600)
    assert plan.money.stored_month == pytest.approx(3 * 256.745, rel=1e-4)
    assert plan.money.network == pytest.approx(10 * 3 * 256.745, rel=1e-4), "the check, and two students"
    assert plan.money.requests == pytest.approx((5 * (30_602 + 62) + 30_600 + 15_300 + 2 * 30_600) / 1000)


@pytest.mark.parametrize(
    ("changed", "bound_by"),
    [
        ({}, "teacher"),
        ({"store_mb_per_s": 1.0}, "network"),
        ({"worker_mb_per_s": 0.1}, "network"),
        ({"image_kb": 10_000.0}, "network"),
        ({"writes_per_s": 0.1}, "requests"),
    ],
)
def test_what_bounds_it(changed: dict[str, float], bound_by: str) -> None:
    plan = on_cluster(replace(CLUSTER, **changed))
    assert plan.stage_one.bound_by == bound_by
    assert any("more workers would not be faster" in line for line in plan.advice) == (bound_by != "teacher")


@pytest.mark.parametrize(
    ("overrides", "workers", "words"),
    [
        ([], 1, None),
        (["cache.views=300", "cache.block_mb=1"], 1, "at most 500,000 blocks are possible"),
        (["cache.block_mb=0.3"], 1, "objects are many"),
        ([], 1000, "units for each worker are few"),
    ],
)
def test_advice_on_blocks(overrides: list[str], workers: int, words: str | None) -> None:
    plan = on_cluster(replace(CLUSTER, workers=workers), *overrides, rates=Rates(teacher=100.0))
    assert len(plan.advice) == (words is not None)
    assert words is None or words in plan.advice[0]


def test_other_engines_are_refused() -> None:
    with pytest.raises(ConfigError, match="--on: expected here, ray, ray://HOST:PORT, slurm or slurm:local, got 'x'"):
        Cluster("x", 1)


def test_the_teachers_rate_is_needed() -> None:
    with pytest.raises(ConfigError, match="expected the teacher's rate on one worker, got none; give --teacher-rate"):
        plan_of(rates=Rates())


def test_the_table() -> None:
    text = plan_table(plan_of(students=25))
    for words in (
        "on ray, 10 workers",
        "stage one is bound by the teacher",
        "25 students",
        "money at the given prices",
    ):
        assert words in text
    unpriced = plan_table(plan_of(Cluster("slurm", 3)))
    assert "on slurm, 3 workers" in unpriced
    assert "money" not in unpriced
