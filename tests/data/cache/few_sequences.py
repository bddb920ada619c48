"""A few random sequences over a cache, which test_stateful_cache.py runs in a process of their own."""

from hypothesis import HealthCheck, settings

from tests.data.cache.stateful import CacheMachine

TestCache = CacheMachine.TestCase
TestCache.settings = settings(
    max_examples=15, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
