"""What a worker of `sweep --on` does: it checks that its node can train the sweep's runs, and trains what it gets."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dhkd.configs.schema import Experiment
from dhkd.data.errors import CacheMismatch, DataError
from dhkd.pipeline.build.cache import reader_of
from dhkd.pipeline.build.checks import require_cache
from dhkd.pipeline.build.data import images_of, plain_identity, recipe_of
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.engines.base import Tell
from dhkd.pipeline.sweep import Trainer
from dhkd.pipeline.sweep_apart import Apart, Files, RunsApart, Token, scratch_for

log = logging.getLogger("dhkd")

# A lost worker may go on for moments, for example until it notices that its node's daemon is gone.
LOST_SECONDS = 30.0

Refused = Mapping[str, str]  # the errors that no folder records, by run name


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that one worker trains side by side; `files` is what the command has of each, if the worker sees none."""

    names: Sequence[str]
    files: Mapping[str, Files] = field(default_factory=dict)


@dataclass(frozen=True)
class Began:
    """The message that a worker begins to train these runs."""

    names: Sequence[str]


@dataclass(frozen=True)
class SweepData:
    """What all runs learn from: `digest` and `identity` are the command's, of its cache and of its images, if known."""

    first: Experiment
    cache: str | None
    options: DataOptions
    digest: str | None
    identity: Mapping[str, object] | None  # plain values

    def require(self) -> None:
        """Raise `DhkdError` unless this node has the same cache and the same images as the command."""
        reader = None if self.cache is None else reader_of(self.cache, self.options)
        if reader is not None:
            reader.require_present()
            if reader.manifest.digest != self.digest:
                raise CacheMismatch(
                    f"cache at {reader.location}: expected that of the command, {str(self.digest)[:12]}, got"
                    f" {reader.manifest.digest[:12]}; give a --cache that is the same on every node"
                )
        classes = None if reader is None else reader.manifest.num_classes
        images = images_of(self.first, "train", self.options, lambda: classes)
        if reader is not None:
            require_cache(self.first, reader, images, recipe_of(self.first.views), [], None, self.options)
        found = plain_identity(images)
        if self.identity is not None and found != self.identity:
            raise DataError(
                f"data set {self.first.data.source}: expected the command's images, with the fingerprint"
                f" {str(self.identity.get('fingerprint'))[:12]}, got {str(found.get('fingerprint'))[:12]}; give a"
                f" --data-root that is the same on every node"
            )


@dataclass(frozen=True)
class SweepWork:
    """The work of a sweep's workers; a unit is a `Group`."""

    trainer: Trainer
    data: SweepData
    token: Token | None  # None where every worker sees the place of the runs

    @contextlib.contextmanager
    def begun(self, tell: Tell) -> Iterator[Callable[[Group], Refused]]:
        """Check the node; the context gives the function that trains a group of runs."""
        self.data.require()
        scratch = None if self.token is None or self.token.is_seen() else scratch_for(self.token)
        if scratch is not None:
            tell(Apart(str(scratch)))

        def train(group: Group) -> Refused:
            tell(Began(group.names))
            trainer = self.trainer
            if scratch is not None:
                trainer = replace(trainer, place=RunsApart(scratch, group.files, tell))
            with _lines_of(group.names):
                return trainer.train_runs(group.names, LOST_SECONDS)[1]

        yield train


@contextlib.contextmanager
def _lines_of(names: Sequence[str]) -> Iterator[None]:
    """Let lines of the log say whose they are, if only one run is trained."""

    def named(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if len(names) == 1 and not text.startswith(names[0]):
            record.msg, record.args = f"{names[0]}: {text}", ()
        return True

    log.addFilter(named)
    try:
        yield
    finally:
        log.removeFilter(named)
