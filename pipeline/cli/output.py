"""How a command prints its result: as text or as one JSON object, once however many processes there are."""

import json
import os
from collections.abc import Callable

import click


def is_first_process() -> bool:
    """Whether this process is the one of several that prints."""
    return int(os.environ.get("RANK", "0")) == 0


def emit(result: object, as_json: bool, text: Callable[[], str]) -> None:
    """Print `result` (dataclasses, or JSON's own values) as JSON, or as what `text` makes of it."""
    from dhkd.pipeline.results import plain

    if is_first_process():
        click.echo(json.dumps(plain(result), indent=2) if as_json else text())
