"""What is simulated: a cache, its workers and how they fail."""

from dataclasses import dataclass, field

from dhkd.benchmarks.caches import manifest_of
from dhkd.benchmarks.scale.store import Limits
from dhkd.data.cache.blocks import Plan
from dhkd.data.cache.manifest import Manifest


@dataclass(frozen=True)
class Size:
    """A cache of logits in float16, cut into blocks as a preset cuts it."""

    samples: int = 1_281_167
    views: int = 300
    classes: int = 1000
    block_mb: float = 16.0
    views_at_once: int = 4

    def manifest(self) -> Manifest:
        """Return the manifest of such a cache."""
        plan = Plan.balanced(self.views, self.samples, 2 * self.classes, int(self.block_mb * 2**20))
        return manifest_of(self.views, self.samples, self.classes, plan.block_rows)


@dataclass(frozen=True)
class Workers:
    """Workers that compute `rate` rows per second on average; rates of single workers are log-normal by `spread`.

    A worker dies after `lives_s` on average, and another one takes its place `away_s` later on average; the loss is
    noticed after `noticed_s`. `late_s` is the time in which the first ones join. Loading the teacher takes `begin_s`.
    """

    number: int = 1000
    rate: float = 2000.0
    spread: float = 0.2
    lives_s: float = 4 * 3600.0
    away_s: float = 120.0
    noticed_s: float = 30.0
    late_s: float = 120.0
    begin_s: float = 60.0


@dataclass(frozen=True)
class Setting:
    """One simulated stage one; `coordinator_s` is what one unit costs the command that gives the units."""

    size: Size = field(default_factory=Size)
    workers: Workers = field(default_factory=Workers)
    store: Limits = field(default_factory=Limits)
    coordinator_s: float = 0.001
    seed: int = 0
