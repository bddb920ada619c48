"""Nested settings as a flat mapping with dotted keys."""

from collections.abc import Mapping
from typing import Any


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of `tree`, with the keys that lead to each joined by dots: {"a": {"b": 1}} gives {"a.b": 1}."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            values |= {f"{key}.{inner}": leaf for inner, leaf in flat(value).items()}
        else:
            values[key] = value
    return values
