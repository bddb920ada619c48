"""The section of `dhkd plan` on a cluster: hours, requests, bytes and money."""

from collections.abc import Iterator

from dhkd.pipeline.cli.tables.plain import plain_table
from dhkd.pipeline.cluster_plan import ClusterPlan, Stage
from dhkd.stages.report.text import bytes_text, duration_text


def cluster_lines(plan: ClusterPlan, students: int | None) -> list[str]:
    """Return a table of both stages, what bounds each, the money, and advice on blocks."""
    cluster = plan.cluster
    stages = {"stage one": plan.stage_one, **({f"{students} students": plan.students} if plan.students else {})}
    header = [f"on {cluster.on}, {cluster.workers:,} workers", "time", "PUT", "GET", "HEAD", "LIST", "written", "read"]
    rows = [[name, duration_text(stage.hours), *_traffic(stage)] for name, stage in stages.items()]
    return [
        plain_table(header, rows, left=1),
        *(f"{name} is bound by the {stage.bound_by}: {_hours_of(stage)}" for name, stage in stages.items()),
        f"{plan.objects:,} objects; {plan.units_per_worker:,.3g} units for each worker",
        *plan.advice,
        *_money(plan),
        "(all workers alike, none lost: python -m dhkd.benchmarks.scale simulates others)",
    ]


def _traffic(stage: Stage) -> Iterator[str]:
    traffic = stage.traffic
    yield from (f"{number:,}" for number in (traffic.puts, traffic.gets, traffic.heads, traffic.lists))
    yield from (bytes_text(number) for number in (traffic.bytes_written, traffic.bytes_read))


def _hours_of(stage: Stage) -> str:
    return ", ".join(f"{limit} {duration_text(hours)}" for limit, hours in stage.hours_of.items())


def _money(plan: ClusterPlan) -> Iterator[str]:
    cluster, money = plan.cluster, plan.money
    parts = {
        "stage one's GPUs": (cluster.price_gpu_hour, money.stage_one),
        "students' GPUs": (cluster.price_gpu_hour, money.students),
        "requests": (_any(cluster.price_puts, cluster.price_gets), money.requests),
        "network": (cluster.price_gb_out, money.network),
        "a month of storage": (cluster.price_gb_month, money.stored_month),
    }
    priced = [f"{name} {amount:,.2f}" for name, (price, amount) in parts.items() if price is not None]
    if priced:
        yield f"money at the given prices: {', '.join(priced)}"


def _any(*prices: float | None) -> float | None:
    return next((price for price in prices if price is not None), None)
