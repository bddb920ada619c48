"""The engines by name, as `--on` gives them.

This is a separate module without heavy imports, because the command line reads it before anything else. An engine's
library is imported when the engine is made.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from dhkd.data.errors import ConfigError
from dhkd.data.extras import needing
from dhkd.pipeline.engines.base import Engine, Needs

HERE = "here"
RAY = "ray"
SLURM = "slurm"


@dataclass(frozen=True)
class EngineOptions:
    """Where a command's work runs, and what one worker needs there; None stands for what the preset implies.

    `on_options` are `key=value` texts that the engine's library gets as they are. At most `tasks` workers work at a
    time.
    """

    on: str = HERE
    on_options: Sequence[str] = ()
    cpus: float | None = None
    gpus: float | None = None
    memory_gb: float | None = None
    tasks: int | None = None

    @property
    def elsewhere(self) -> bool:
        """Whether the work runs on an engine, rather than in this process."""
        return self.on != HERE

    @property
    def settings(self) -> Mapping[str, str]:
        """The options for the engine's library. Raises `ConfigError` for one that is not of the form `key=value`."""
        settings = {}
        for text in self.on_options:
            key, equals, value = text.partition("=")
            if not equals or not key:
                raise ConfigError(f"--on-option: expected KEY=VALUE, got {text!r}")
            settings[key] = value
        return settings

    @property
    def values(self) -> Mapping[str, object]:
        """The `settings` with their values read as YAML. Raises `ConfigError` for a value that isn't YAML."""
        import yaml

        values = {}
        for key, text in self.settings.items():
            try:
                values[key] = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ConfigError(f"--on-option {key}: expected a value in YAML, got {text!r}") from error
        return values

    def needs(self, implied: Needs) -> Needs:
        """Return what one worker needs: what the user said, and otherwise what is `implied`."""
        return Needs(
            cpus=implied.cpus if self.cpus is None else self.cpus,
            gpus=implied.gpus if self.gpus is None else self.gpus,
            memory_gb=implied.memory_gb if self.memory_gb is None else self.memory_gb,
        )


def engine_of(options: EngineOptions) -> AbstractContextManager[Engine]:
    """Build the engine that `--on` names: `ray`, `ray://HOST:PORT`, `slurm` or `slurm:local`.

    Raises `ConfigError` for another name, and if the engine's library is not installed.
    """
    if options.on == RAY or options.on.startswith(f"{RAY}://"):
        with needing("ray", f"--on {options.on}"):
            from dhkd.pipeline.engines.ray import ray_engine
        return ray_engine(options)
    if options.on in (SLURM, f"{SLURM}:local"):
        with needing("submitit", f"--on {options.on}"):
            from dhkd.pipeline.engines.slurm import slurm_engine
        return slurm_engine(options)
    raise ConfigError(f"--on: expected here, ray, ray://HOST:PORT, slurm or slurm:local, got {options.on!r}")
