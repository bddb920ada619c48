"""The reference of all commands, from what click knows of them: usage, help, options, defaults and exit codes."""

import re
from collections.abc import Iterator

import click
from dhkd.pipeline.cli import cli
from words import code, marked, sentence

HEAD = """\
# Commands

Every command with its options, generated from the command line itself. `dhkd COMMAND --help` prints the same.
"""

_FACTS = re.compile(r"\s*\[((?:default: |required|x|[\d.]+\s*<)[^\[\]]*)\]")


def page() -> str:
    """Return the page as Markdown."""
    context = click.Context(cli, info_name="dhkd")
    lines = [HEAD, _text(cli), f"{marked(cli.epilog or '')}\n", "| command | what it does |", "|---|---|"]
    commands = [(name, cli.commands[name]) for name in cli.list_commands(context)]
    lines += [
        f"| [`dhkd {name}`](#{name}) | {marked(command.get_short_help_str(1000))} |" for name, command in commands
    ]
    lines += ["", "Before the command's name, `dhkd` itself takes:\n", *_options(cli, context, "dhkd")]
    for name, command in commands:
        lines += _command(command, click.Context(command, info_name=name, parent=context), 2)
    return "\n".join(lines)


def _command(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    words = context.command_path
    anchor = words.removeprefix("dhkd ").replace(" ", "-")
    yield f'\n{"#" * level} {code(words)} {{ #{anchor} data-toc-label="{words.removeprefix("dhkd ")}" }}\n'
    yield _text(command)
    yield f"```\n{' '.join([words, *command.collect_usage_pieces(context)])}\n```\n"
    yield from _options(command, context, anchor)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.commands[name]
            yield from _command(inner, click.Context(inner, info_name=name, parent=context), level + 1)


def _text(command: click.Command) -> str:
    paragraphs = (command.help or "").split("\n\n")
    return "\n\n".join(sentence(part) for part in paragraphs if part.strip()) + "\n"


def _options(command: click.Command, context: click.Context, anchor: str) -> Iterator[str]:
    for parameter in command.get_params(context):
        names, text = parameter.get_help_record(context) or ("", "")
        if not text or names == "--help":
            continue
        option = max(parameter.opts, key=len).lstrip("-")
        yield f"{code(names.replace(' RANGE', ''))} {{ #{anchor}--{option} }}\n:   {_help(text)}\n"


def _help(text: str) -> str:
    """Return an option's help, with the defaults and limits that stand in brackets as sentences at its end."""
    text = " ".join(text.split())
    facts = [part.strip() for bracket in _FACTS.findall(text) for part in bracket.split(";")]
    return " ".join([sentence(_FACTS.sub("", text)), *map(_fact, facts)])


def _fact(text: str) -> str:
    bounds = re.fullmatch(r"(?:(\S+?)\s*(<=?)\s*)?x\s*(?:(<=?|>=?)\s*(\S+))?", text)
    if bounds is not None:
        low, _, sign, high = bounds.groups()
        if low is not None:
            return f"From {low} to {high}." if high else f"At least {low}."
        return f"{'At least' if sign == '>=' else 'Above' if sign == '>' else 'At most'} {high}."
    if text.startswith("default: "):
        return f"**Default:** {marked(text.removeprefix('default: '))}."
    return f"**{text[:1].upper()}{text[1:]}.**" if text == "required" else sentence(text)
