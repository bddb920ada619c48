"""Nested plain values as one level of them, by dotted keys."""

from collections.abc import Mapping
from typing import Any


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Each value that is no mapping, under the keys that lead to it: {"a": {"b": 1}} is {"a.b": 1}."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            values |= {f"{key}.{inner}": each for inner, each in flat(value).items()}
        else:
            values[key] = value
    return values
