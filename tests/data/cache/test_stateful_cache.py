"""Random sequences of writers, deaths, damage, repair, conversion and readers; the soak runs many more."""

from hypothesis import HealthCheck, settings

from tests.data.cache.stateful import TEACHERS, CacheMachine

TestCache = CacheMachine.TestCase
TestCache.settings = settings(
    max_examples=30, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_damage_of_two_teachers_is_repaired_by_their_commands() -> None:
    machine = CacheMachine()
    for teacher in TEACHERS:
        machine.a_writer_that_lives(teacher=teacher, views=1)
    for teacher in TEACHERS:
        (path,) = machine.path.glob(f"signals/{teacher}/c/0/0/0")
        path.write_bytes(path.read_bytes()[::-1])
    machine.repair()
    machine.teardown()
