"""Random sequences of writers, deaths, damage, repair, conversion and readers; the soak runs many more."""

from hypothesis import HealthCheck, settings

from tests.data.cache.stateful import CacheMachine

TestCache = CacheMachine.TestCase
TestCache.settings = settings(
    max_examples=30, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
