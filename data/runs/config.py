"""Reading config.yaml: the settings of one run, fast, since reports read those of hundreds of runs."""

from pathlib import Path
from typing import Any

import yaml
from dhkd.data.errors import RunMismatch
from dhkd.data.runs.names import CONFIG

# libyaml reads a file ten times as fast as Python does. PyYAML has it unless it was built without.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DEEPEST = 100  # mappings and lists in one another; libyaml's recursion has no limit, and would end the process


def read_config(path: Path) -> dict[str, Any] | None:  # Any: YAML
    """Read the nested settings of the run at `path`; return None if there is no run.

    Raises `RunMismatch` if the settings are damaged.
    """
    file = path / CONFIG
    try:
        content = file.read_bytes()
        _require_shallow(content)
        config = yaml.load(content, Loader=LOADER)
        if not isinstance(config, dict):
            raise ValueError(f"got a {type(config).__name__}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (yaml.YAMLError, ValueError, RecursionError, IsADirectoryError) as error:
        raise RunMismatch(
            f"{file}: expected a run's configuration in YAML, found something else; choose another --out"
        ) from error
    return config


def _require_shallow(content: bytes) -> None:
    depth = 0
    for event in yaml.parse(content, Loader=LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels")
