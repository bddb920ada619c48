"""Markdown of the cards that describe a run or a cache: text from settings and names, made harmless, and tables.

A card is published, and its names come from presets, folders and caches that anybody may have written.
"""

from collections.abc import Mapping, Sequence

import yaml
from dhkd.data.shown import printable_line, shown

LONGEST_NAME = 200  # characters of a name in a text; settings are written in full


def code(value: object) -> str:
    """Return a value as inline code, in one line, which may stand in a table."""
    line = printable_line(shown(str(value)), LONGEST_NAME).replace("`", "'").replace("|", "¦").strip()
    return f"`{line}`" if line else "(empty)"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells, which are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def fenced(text: str, language: str = "") -> str:
    """Return a block of code, between fences that are longer than any in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{shown(text).rstrip()}\n{fence}"


def folded(title: str, content: str) -> str:
    """Return content that a page shows when its title is opened."""
    return f"<details>\n<summary>{title}</summary>\n\n{content}\n\n</details>"


def front_matter(tree: Mapping[str, object]) -> str:
    """Return plain values as the YAML with which a hub's README begins."""
    return f"---\n{yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=1000)}---"
