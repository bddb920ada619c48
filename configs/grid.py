"""A grid of experiments: every combination of the values listed for some keys."""

import itertools
import json
import re
from collections.abc import Sequence

import yaml
from dhkd.data.errors import ConfigError

# Matches the folders in my/nets.py:Net, which the name of a combination leaves out.
_FOLDERS_OF_CODE = re.compile(r"[^\s=,+*]*/(?=[^\s=,+*/]*\.py:)")


def combinations(grid: Sequence[str]) -> dict[str, list[str]]:
    """Return the overrides of every combination of a grid, by the combination's name.

    `grid` lists texts such as "key=a,b", and an override is a text such as "key=a". A combination's name is a valid
    folder name. The values a,b are read as the elements of a YAML list, so a value that is itself a list needs its own
    brackets, as in "milestones=[30,60],[40,80]". Raises `ConfigError` for a text that can't be read, and for a key or a
    combination that occurs twice.
    """
    choices: list[list[tuple[str, str]]] = []
    for text in grid:
        key, separator, listed = text.partition("=")
        key = key.strip()
        try:
            values = yaml.safe_load(f"[{listed}]")
        except yaml.YAMLError:
            values = None
        if not (separator and key and values):
            raise ConfigError(f"--grid {text}: expected KEY=VALUE,VALUE, the values as YAML")
        if any(key == choice[0][0] for choice in choices):
            raise ConfigError(f"--grid {text}: expected each key once, got {key} twice")
        choices.append([(key, value if isinstance(value, str) else json.dumps(value)) for value in values])
    overrides_of: dict[str, list[str]] = {}
    for combination in itertools.product(*choices):
        overrides = [f"{key}={value}" for key, value in combination]
        short = [_FOLDERS_OF_CODE.sub("", override) for override in overrides]
        name = re.sub(r"[^\w.=+*,-]+", "_", ",".join(short))
        if name in overrides_of:
            raise ConfigError(f"--grid: expected different values, got {name} twice")
        overrides_of[name] = overrides
    return overrides_of
