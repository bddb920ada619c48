"""JSON as strangers may write it, decoded without surprises, and in one fixed form for hashing.

The standard library's decoder accepts NaN and infinities, turns 1e999 into infinity, and takes the last of several
equal keys. Here all of these are errors.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import NoReturn

MOST_DIGITS = 400  # of a number; the largest float has 309


def canonical(tree: object) -> bytes:
    """Encode a tree of plain values as JSON in one fixed form, for hashing; raises `ValueError` for NaN or infinity."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def decode(content: bytes) -> object:
    """Decode JSON; raises `ValueError` for anything that is not strictly JSON, and for values that nest too deeply."""
    try:
        tree: object = json.loads(
            content,
            parse_constant=_not_json,
            parse_float=_float,
            parse_int=_int,
            object_pairs_hook=_without_repeats,
        )
    except RecursionError as error:
        raise ValueError("values nest too deeply") from error
    return tree


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is out of range")
    return number


def _int(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits is out of range")
    return int(text)


def _without_repeats(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        repeated = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {repeated[:50]!r} is there twice")
    return tree
