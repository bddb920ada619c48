"""A grid of experiments: every combination of the values that some keys are to take."""

import itertools
import json
import re
from collections.abc import Sequence

import yaml
from dhkd.data.errors import ConfigError


def combinations(grid: Sequence[str]) -> dict[str, list[str]]:
    """Of "key=a,b" each, every combination: a name that serves as a folder's, and its `key=value` overrides.

    Values are read as YAML's of a list, so a list among them has brackets of its own. Raises `ConfigError`.
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
        if any(key == other for choice in choices for other, _ in choice):
            raise ConfigError(f"--grid {text}: expected each key once, got {key} twice")
        written = [value if isinstance(value, str) else json.dumps(value) for value in values]
        choices.append([(key, value) for value in written])
    found: dict[str, list[str]] = {}
    for chosen in itertools.product(*choices):
        name = re.sub(r"[^\w.=+*,-]+", "_", ",".join(f"{key}={value}" for key, value in chosen))
        if name in found:
            raise ConfigError(f"--grid: expected different values, got {name} twice")
        found[name] = [f"{key}={value}" for key, value in chosen]
    return found
