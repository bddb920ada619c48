"""Many random sequences over a cache, and writers that are really killed among them: `make soak`."""

from hypothesis import HealthCheck, settings

from tests.data.cache.stateful import CacheMachine

TestManyCaches = CacheMachine.TestCase
TestManyCaches.settings = settings(
    max_examples=500, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
