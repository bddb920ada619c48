"""Printing a command's result, as text or as one JSON object, from the first of its processes only."""

import json
import os
from collections.abc import Callable

import click
from dhkd.data.printable import printable


def is_first_process() -> bool:
    """Return whether this is the first process of its group, the only one that prints."""
    return int(os.environ.get("RANK", "0")) == 0


def emit(result: object, as_json: bool, text: Callable[[], str]) -> None:
    """Print `result` (dataclasses or plain JSON values) as JSON, or else the text that `text` returns.

    Characters in the text that could disturb a terminal are printed as escapes; line breaks stay.
    """
    from dhkd.pipeline.results import plain

    if is_first_process():
        shown = "" if as_json else "\n".join(map(printable, text().split("\n")))
        click.echo(json.dumps(plain(result), indent=2) if as_json else shown)
