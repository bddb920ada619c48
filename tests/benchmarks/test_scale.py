"""The simulation of stage one: each block is computed once, and once more each time that its work is lost."""

from dataclasses import replace

import pytest
from dhkd.benchmarks.scale.cluster import Simulation, simulate, units_to_compute
from dhkd.benchmarks.scale.commands import Commands
from dhkd.benchmarks.scale.costs import index_costs, schedule_seconds
from dhkd.benchmarks.scale.settings import Setting, Size, Workers
from dhkd.benchmarks.scale.store import Limits, SimulatedBucket
from dhkd.data.cache.missing import missing_blocks
from hypothesis import given, settings
from hypothesis import strategies as st

SMALL = Size(samples=500, views=6, classes=10, block_mb=0.001, views_at_once=2)

clusters = st.builds(
    Workers,
    number=st.integers(1, 12),
    rate=st.sampled_from([1.0, 20.0, 1000.0]),
    spread=st.sampled_from([0.0, 0.3, 1.5]),
    lives_s=st.sampled_from([20.0, 60.0, 1000.0, 1e9]),
    away_s=st.sampled_from([0.1, 10.0, 300.0]),
    noticed_s=st.sampled_from([0.0, 1.0, 30.0]),
    late_s=st.sampled_from([0.0, 100.0]),
    begin_s=st.sampled_from([0.0, 5.0]),
)
stores = st.sampled_from([Limits(), Limits(latency_s=2.0, bytes_per_s=1000.0, worker_bytes_per_s=100.0)])


@settings(max_examples=60, deadline=None)
@given(workers=clusters, store=stores, coordinator_s=st.sampled_from([0.0, 0.5]), seed=st.integers(0, 1000))
def test_every_unit_is_done_and_work_is_repeated_only_if_it_was_lost(
    workers: Workers, store: Limits, coordinator_s: float, seed: int
) -> None:
    # A worker that lives for less than a block takes would never store one.
    slowest = workers.rate / 20 if workers.spread > 1 else workers.rate / 2
    workers = replace(workers, lives_s=max(workers.lives_s, 10 * 50 / slowest + 10 * store.latency_s + workers.begin_s))
    setting = Setting(SMALL, workers, store, coordinator_s, seed)
    manifest, bucket = SMALL.manifest(), SimulatedBucket(store)
    units = units_to_compute(setting, manifest)
    simulation = Simulation(setting, manifest, bucket, units)
    simulation.run()
    given_up = {block for unit in simulation.given_up for block in unit}
    assert simulation.schedule.is_done
    assert set(missing_blocks(bucket, "zarr", manifest, manifest.names)) <= given_up
    assert sorted([*simulation.ends, *simulation.given_up]) == sorted(units)
    assert set(simulation.ends.values()) <= {1}
    assert not simulation.after_the_end
    for block, starts in simulation.starts.items():
        stored = all(bucket.size(key) >= 0 for key in simulation.keys(block))
        assert starts == simulation.losses[block] + stored, block


def test_a_cluster_without_failures_takes_what_its_rate_implies() -> None:
    workers = Workers(number=4, rate=100.0, spread=0.0, lives_s=1e12, late_s=0.0, begin_s=0.0)
    outcome, bucket, _ = simulate(Setting(SMALL, workers, Limits(latency_s=0.0), coordinator_s=0.0))
    assert outcome.ideal_seconds == 500 * 6 / 400
    assert outcome.ideal_seconds <= outcome.seconds <= 1.3 * outcome.ideal_seconds
    assert (outcome.lost, outcome.recomputed, outcome.losses, outcome.deaths) == (0, 0, 0, 0)
    assert bucket.requests["PUT"] == 2 * outcome.blocks


def test_chance_alone_gives_no_unit_up() -> None:
    """Some thousand losses among a thousand units: several units are lost three times."""
    size = Size(samples=20_000, views=50, classes=10, block_mb=0.02, views_at_once=1)
    workers = Workers(number=50, rate=10.0, lives_s=300.0, away_s=10.0, begin_s=1.0, noticed_s=5.0)
    outcome, _, _ = simulate(Setting(size, workers))
    assert outcome.losses > 300
    assert (outcome.lost, outcome.unexplained, outcome.given_up) == (0, 0, 0)


@pytest.mark.parametrize("number", [1, 30])
def test_commands_that_do_not_know_of_each_other_share_a_bucket(number: int) -> None:
    workers = Workers(number=number, rate=100.0, late_s=1.0, begin_s=0.0)
    outcome = Commands(Setting(SMALL, workers, Limits(latency_s=0.01))).run()
    assert outcome.seconds >= outcome.ideal_seconds
    assert (outcome.twice == 0) == (number == 1)


def test_the_costs_are_those_of_the_real_code() -> None:
    manifest = SMALL.manifest()
    assert [cost.step for cost in index_costs(manifest)][-1] == "index read"
    assert schedule_seconds(units_to_compute(Setting(SMALL), manifest), 3) > 0
