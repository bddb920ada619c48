"""Which unit goes to which worker."""

from dhkd.pipeline.engines.schedule import LOSSES_AT_ALL, MOST_LOSSES, Schedule


def losses_until_given_up(schedule: Schedule[int]) -> int:
    """Lose whatever worker has the next unit, until that unit is given up; return how often it was lost."""
    for losses in range(1, 100):
        unit = schedule.give("w")
        if schedule.lose("w") == unit:
            return losses
    raise AssertionError


def test_a_lost_unit_is_the_next_one_to_be_given() -> None:
    schedule = Schedule([1, 2, 3])
    assert [schedule.give("a"), schedule.give("b")] == [1, 2]
    assert schedule.lose("a") is None
    assert schedule.give("c") == 1
    assert [schedule.end("b"), schedule.end("c"), schedule.give("c"), schedule.end("c")] == [2, 1, 3, 3]
    assert schedule.is_done


def test_a_worker_without_a_unit_loses_none() -> None:
    schedule = Schedule([1])
    assert schedule.lose("a") is None
    assert schedule.num_waiting == 1


def test_a_unit_that_ends_its_workers_is_given_up() -> None:
    schedule = Schedule(range(10_000))
    for _ in range(50):
        schedule.give("other")
        schedule.end("other")
    assert losses_until_given_up(schedule) == MOST_LOSSES


def test_a_unit_is_not_given_up_where_workers_are_lost_all_the_time() -> None:
    schedule = Schedule(range(10_000))
    for number in range(1000):
        schedule.give("other")
        if number % 10 == 0:  # one in ten is lost, and ended by the next worker
            assert schedule.lose("other") is None
            schedule.give("other")
        schedule.end("other")
    assert MOST_LOSSES < losses_until_given_up(schedule) < LOSSES_AT_ALL, "10,000 · 0.09^n is below 0.01 from n = 6 on"


def test_units_that_all_end_their_workers_are_given_up() -> None:
    schedule = Schedule(range(3))
    schedule.give("w")
    schedule.end("w")
    assert [losses_until_given_up(schedule) <= LOSSES_AT_ALL for _ in range(2)] == [True, True]
    assert schedule.is_done
