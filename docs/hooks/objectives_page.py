"""The reference of the methods' options, from the dataclasses of the objectives and their docstrings."""

import inspect
from collections.abc import Iterator

from dhkd.data.options import parameters_of
from dhkd.stages.train.objectives import OBJECTIVES
from words import code, escaped, value

HEAD = """\
# Objectives

The methods by name, each with its formula and its options, generated from the code. A preset sets options as
`objectives: {kd: {temperature: 2}}`, a command as `--set objectives.kd.temperature=2`. Objectives can be combined:
`--set objective='dhkd + 0.5 * rkd'`. What each needs of the teacher, and how they do, is in
[Methods](../methods.md).
"""


def page() -> str:
    """Return the page as Markdown."""
    return "\n".join([HEAD, *(line for name in OBJECTIVES for line in _objective(name))])


def _objective(name: str) -> Iterator[str]:
    made = OBJECTIVES[name]
    yield f"\n## {code(name)} {{ #{name} }}\n"
    yield f"{inspect.cleandoc(made.__doc__ or '')}\n"
    source = (inspect.getdoc(inspect.getmodule(made)) or "").split("\n\n")[1:]
    yield from (f"{' '.join(part.split())}\n" for part in source if "arXiv" in part)
    parameters = parameters_of(made).values()
    if parameters:
        yield "| option | type | default |\n|---|---|---|"
        yield from (f"| {code(one.name)} | {_kind(one.annotation)} | {value(one.default)} |" for one in parameters)
        yield ""


def _kind(annotation: object) -> str:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return escaped(text.replace("typing.", ""))
