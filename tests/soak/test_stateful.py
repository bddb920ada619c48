"""Many random sequences over a cache: `make soak`."""

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.data.cache.stateful import CacheMachine

TestManyCaches = pytest.mark.timeout(3600)(CacheMachine.TestCase)
TestManyCaches.settings = settings(
    max_examples=500,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink a failure may take an hour
)
