"""YAML as strangers may write it, decoded within limits of size, depth and repetition.

PyYAML's safe loader runs no code. But a few lines of aliases can stand for billions of values, and a number may have a
million digits. So a document is measured before values are made of it. Keys that are there twice are an error, because
the last one would win without a word.
"""

import re
from typing import Any

import yaml
from dhkd.data.shown import line_of

LARGEST_TEXT = 2**18  # characters
MOST_VALUES = 20_000  # with every alias replaced by what it stands for
MAX_DEPTH = 20
LONGEST_NUMBER = 100  # characters

_TAGS = {
    f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map", "timestamp", "merge")
}


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads 1e-3 as a number; by YAML 1.1, 1e-3 is text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def decode(text: str) -> Any:  # YAML may hold any value
    """Decode one YAML document; raises `ValueError` in one line for anything that is invalid or beyond the limits."""
    if len(text) > LARGEST_TEXT:
        raise ValueError(f"expected at most {LARGEST_TEXT:,} characters, got {len(text):,}")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, 1, {})
        return loader.construct_document(node)
    # PyYAML does not catch the errors of int(), datetime.date() and its lookup tables, as for 2024-99-99 and !!bool x.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(line_of(error)) from error


def _measure(node: yaml.Node, depth: int, sizes: dict[int, int]) -> int:
    """Return how many values a node stands for; raises `ValueError` beyond the limits.

    `sizes` holds the sizes of the nodes that were measured before, by their identity, and 0 for those that hold this
    node: an alias inside what it stands for has no end.
    """
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise ValueError("an alias stands for something that holds it")
        return sizes[id(node)]
    if depth > MAX_DEPTH:
        raise ValueError(f"values nest deeper than {MAX_DEPTH}")
    if node.tag not in _TAGS:
        raise ValueError(f"expected plain values, got the tag {node.tag[:50]}")
    sizes[id(node)] = 0
    size = 1
    for child in _children(node):
        size += _measure(child, depth + 1, sizes)
        if size > MOST_VALUES:
            raise ValueError(f"expected at most {MOST_VALUES:,} values, got more")
    sizes[id(node)] = size
    return size


def _require_single_keys(node: yaml.MappingNode) -> None:
    """Raise `ValueError` if a key occurs twice; a merged mapping (<<) still gives way to the keys beside it."""
    line_of: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
            continue
        line, name = key.start_mark.line + 1, (key.tag, key.value)
        if name in line_of:
            lines = f"lines {line_of[name]} and {line}" if line_of[name] != line else f"line {line}"
            raise ValueError(f"expected each key once, got {key.value[:50]!r} twice, in {lines}; keep one of them")
        line_of[name] = line


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        _require_single_keys(node)
        return [part for pair in node.value for part in pair]
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if node.tag.endswith((":int", ":float")) and len(node.value) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(node.value):,} characters")
    return []
