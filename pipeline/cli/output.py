"""Printing a command's result, as text or as one JSON object, from the first of its processes only."""

import json
from collections.abc import Callable

import click
from dhkd.data.shown import redacted, shown
from dhkd.pipeline.launch import is_first_process


def emit(result: object, as_json: bool, text: Callable[[], str]) -> None:
    """Print `result` (dataclasses or plain JSON values) as JSON, or else the text that `text` returns.

    Characters in the text that could disturb a terminal are printed as escapes; line breaks stay.
    """
    from dhkd.pipeline.results import plain

    if not is_first_process():
        return
    if as_json:
        # JSON's own escapes leave one control character, DEL.
        click.echo(json.dumps(_redacted(plain(result)), indent=2).replace("\x7f", "\\u007f"))
    else:
        print_text(text())


def print_text(text: str, *, newline: bool = True) -> None:
    """Print text on standard output, without secrets and control characters."""
    click.echo(shown(text), nl=newline)


def _redacted(tree: object) -> object:
    """Return plain JSON values without the secrets of URLs."""
    if isinstance(tree, str):
        return redacted(tree)
    if isinstance(tree, dict):
        return {key: _redacted(value) for key, value in tree.items()}
    return [_redacted(value) for value in tree] if isinstance(tree, list) else tree
