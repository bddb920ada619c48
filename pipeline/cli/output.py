"""Printing a command's result, as text or as one JSON object, from the first of its processes only."""

import json
from collections.abc import Callable

import click
from dhkd.pipeline.launch import is_first_process


def emit(result: object, as_json: bool, text: Callable[[], str]) -> None:
    """Print `result` (dataclasses or plain JSON values) as JSON, or else the text that `text` returns."""
    from dhkd.pipeline.results import plain

    if is_first_process():
        click.echo(json.dumps(plain(result), indent=2) if as_json else text())
