"""Nested settings as one level, by dotted keys."""

from collections.abc import Mapping
from typing import Any


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of `tree` under the keys that lead to them: {"a": {"b": 1}} becomes {"a.b": 1}."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            values |= {f"{key}.{inner}": leaf for inner, leaf in flat(value).items()}
        else:
            values[key] = value
    return values
