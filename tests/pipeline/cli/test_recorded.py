"""The recorded command: nothing of it is forgotten, and it is the same however the command was typed."""

import shlex
from collections.abc import Iterator

import click
import pytest
from dhkd.pipeline.cli.cache import cache_teacher
from dhkd.pipeline.cli.recorded import OF_THE_MACHINE, recorded_command
from dhkd.pipeline.cli.train import sweep

NEEDED = {
    "cache-teacher": ["digits", "--teacher", "t", "--out", "c"],
    "sweep": ["digits", "--out", "o"],
}


def context_of(command: click.Command, *words: str) -> click.Context:
    return command.make_context(str(command.name), list(words))


def recorded(command: click.Command, *words: str) -> str:
    without = OF_THE_MACHINE if command is cache_teacher else frozenset[str]()
    return recorded_command(context_of(command, *words), without=without)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("digits --teacher t --out c", "dhkd cache-teacher digits --teacher t"),
        ("--out=c --teacher=runs/t/ digits", "dhkd cache-teacher digits --teacher runs/t"),
        (
            "digits --smoke --precision bf16 --signals logits,cam --name b --codec int8 --store zarr --views 2"
            " --set b=2 --teacher t --set a=1 --out c",
            "dhkd cache-teacher digits --teacher t --set b=2 --set a=1 --views=2 --store=zarr --codec=int8 --name=b"
            " --signals=logits,cam --precision=bf16 --smoke",
        ),
        (
            "digits --teacher t --out s3://b/c --part 2/3 --data-root d --download --workers 0 --allow-bad 3"
            " --fetched-gb 5 --cpu --json --on ray --on-option a=1 --cpus 2 --gpus 0.5 --memory 3 --tasks 4",
            "dhkd cache-teacher digits --teacher t",
        ),
        (
            "'my preset.yaml' --teacher 'packaged:A B' --out c --name 'second one' --set 'description=it'\"'\"'s'",
            "dhkd cache-teacher 'my preset.yaml' --teacher 'packaged:A B' --set 'description=it'\"'\"'s'"
            " '--name=second one'",
        ),
        ("digits --teacher t --out c --name ''", "dhkd cache-teacher digits --teacher t"),
    ],
)
def test_what_a_cache_records_is_pinned(words: str, expected: str) -> None:
    """A cache holds this text, and is compared with others to the bit."""
    assert recorded(cache_teacher, *shlex.split(words)) == expected


def test_what_a_sweep_records_is_pinned() -> None:
    words = (
        "digits --json --again --part 2/4 --seeds 3 --grid objective=ce,kd --set a=1 --out o --cache c"
        " --track none --track wandb --data-root d --together 1"
    )
    assert recorded(sweep, *words.split()) == (
        "dhkd sweep digits --out o --set a=1 --grid objective=ce,kd --track none --track wandb --cache=c --seeds=3"
        " --part=2/4 --together=1 --data-root=d --again --json"
    )


def sample(option: click.Option) -> str | None:
    """A value that the option takes; None for a flag."""
    if option.is_flag:
        return None
    if isinstance(option.type, click.Choice):
        return str(option.type.choices[-1])
    if isinstance(option.type, click.IntRange):
        return "7"
    if isinstance(option.type, click.FloatRange):
        return "0.5"
    return "2/3" if option.name == "part" else "some thing"


def options() -> Iterator[tuple[click.Command, click.Option]]:
    for command in (cache_teacher, sweep):
        yield from ((command, option) for option in command.params if isinstance(option, click.Option))


@pytest.mark.parametrize(
    ("command", "option"), [pytest.param(*pair, id=f"{pair[0].name} {pair[1].opts[0]}") for pair in options()]
)
def test_an_option_is_recorded_or_left_out_on_purpose(command: click.Command, option: click.Option) -> None:
    name, value = option.opts[0], sample(option)
    words = NEEDED[str(command.name)]
    before = shlex.split(recorded(command, *words))
    after = shlex.split(recorded(command, *words, *([name] if value is None else [name, value])))
    if command is cache_teacher and name in OF_THE_MACHINE:
        assert before == after
        return
    added = [word for word in after if word not in before]
    assert added in ([name], [name, value], [value], [f"{name}={value}"])


def test_the_list_of_those_left_out_names_options() -> None:
    assert {option.opts[0] for command, option in options() if command is cache_teacher} >= OF_THE_MACHINE


@pytest.mark.parametrize("command", [cache_teacher, sweep], ids=["cache-teacher", "sweep"])
def test_the_recorded_command_asks_for_the_same(command: click.Command) -> None:
    """Parsed again, with what was left out on purpose, it gives the same values."""
    without = OF_THE_MACHINE if command is cache_teacher else frozenset[str]()
    words = list(NEEDED[str(command.name)])
    kept = [word for word in ("--out", words[words.index("--out") + 1]) if "--out" in without]
    for owner, option in options():
        value = sample(option)
        if owner is command and option.opts[0] not in {*without, *words}:
            words += [option.opts[0]] if value is None else [option.opts[0], value]
    typed = context_of(command, *words)
    program, name, *again = shlex.split(recorded_command(typed, without=without))
    assert (program, name) == ("dhkd", command.name)
    assert context_of(command, *again, *kept).params == typed.params


def test_the_order_of_typing_does_not_matter() -> None:
    first = recorded(sweep, "digits", "--out", "o", "--seeds", "2", "--smoke", "--cache=c")
    assert recorded(sweep, "--smoke", "--cache", "c", "--seeds=2", "--out=o", "digits") == first
