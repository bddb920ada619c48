"""From options to the values that a command's function receives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from dhkd.data.errors import ConfigError
from dhkd.pipeline.cli.options import (
    ExperimentOptions,
    Part,
    RunOptions,
    cpu_option,
    data_options,
    experiment_options,
    gathered,
    json_option,
    part_option,
    precision_option,
    resume_option,
)
from dhkd.pipeline.cli.train import SweepOptions
from dhkd.pipeline.data_options import DataOptions


def values_of(decorate: Callable[..., Any], *words: str) -> dict[str, Any]:
    """What a command's function receives, if `decorate` adds its options."""
    received: dict[str, Any] = {}

    def function(**values: Any) -> None:
        received.update(values)

    click.command()(decorate(function)).main(list(words), standalone_mode=False)
    return received


def test_a_preset_and_its_overrides_are_one_value() -> None:
    words = ("digits", "--set", "seed=1", "--smoke", "--set", "seed=2")
    assert values_of(experiment_options(), *words) == {
        "experiment": ExperimentOptions("digits", ("seed=1", "seed=2"), smoke=True)
    }


def test_an_option_that_is_short_for_a_setting_becomes_one() -> None:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        short_for = {"precision": "student.precision={}", "signals": "cache.signals=[{}]"}
        return experiment_options(short_for)(precision_option(click.option("--signals")(function)))

    assert values_of(decorate, "digits", "--precision", "fp16") == {
        "experiment": ExperimentOptions("digits", (), settings=("student.precision=fp16",))
    }
    experiment = values_of(decorate, "digits", "--signals", "logits,cam")["experiment"]
    assert experiment.load().cache.signals == ("logits", "cam")
    assert values_of(decorate, "digits", "--signals", "")["experiment"].settings == ("cache.signals=[]",)


def test_settings_are_applied_after_all_overrides() -> None:
    """--precision wins over --set, and over a grid's own value."""
    options = ExperimentOptions("digits", ["seed=1", "student.lr=1"], settings=["student.lr=3"])
    assert (options.load().seed, options.load().student.lr) == (1, 3)
    assert (options.load("seed=2", "student.lr=2").seed, options.load("student.lr=2").student.lr) == (2, 3)


def test_smoke_is_applied_before_overrides() -> None:
    assert ExperimentOptions("digits", smoke=True).load().data.limit == 200
    assert ExperimentOptions("digits", ["data.limit=150"], smoke=True).load().data.limit == 150


def test_a_grid_is_an_experiment_for_each_combination() -> None:
    experiments = ExperimentOptions("digits", ["seed=9"]).load_grid(["objective=ce,kd", "student.lr=0.1,0.2"])
    assert [(experiment.objective, experiment.student.lr, experiment.seed) for experiment in experiments.values()] == [
        *(("ce", 0.1, 9), ("ce", 0.2, 9)),
        *(("kd", 0.1, 9), ("kd", 0.2, 9)),
    ]
    assert next(iter(experiments)) == "objective=ce,student.lr=0.1"


def test_an_unknown_preset_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'digts'"):
        ExperimentOptions("digts").load()


def test_the_options_of_data_are_one_value() -> None:
    assert values_of(data_options) == {"data": DataOptions()}
    words = ["--data-root", "d", "--download", "--workers", "0", "--allow-bad", "3", "--fetched-gb", "5"]
    assert values_of(data_options, *words) == {"data": DataOptions("d", True, 0, 3, 5)}


def test_gathering_takes_the_options_that_a_command_has() -> None:
    """Fields without an option keep their defaults; options that are no field are passed on."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        out = click.option("--out", type=Path)
        return gathered("run", RunOptions)(out(cpu_option(resume_option(json_option(function)))))

    assert values_of(decorate, "--out", "o", "--resume") == {
        "run": RunOptions(Path("o"), cpu=False, resume=True),
        "as_json": False,
    }


def test_two_values_can_be_gathered_from_one_command() -> None:
    @dataclass(frozen=True)
    class Size:
        rows: int

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        return gathered("size", Size)(click.option("--rows", type=int)(data_options(function)))

    assert values_of(decorate, "--rows", "3", "--workers", "2") == {"size": Size(3), "data": DataOptions(workers=2)}


@pytest.mark.parametrize(("text", "part"), [("1/1", (0, 1)), ("3/8", (2, 8)), ("8/8", (7, 8))])
def test_a_part_is_read_and_written(text: str, part: tuple[int, int]) -> None:
    received = values_of(part_option("x"), "--part", text)["part"]
    assert received == part
    assert isinstance(received, Part)
    assert str(received) == text


@pytest.mark.parametrize("text", ["", "0/2", "3/2", "1", "a/b", "1/", "-1/2", "1.0/2", "²/2"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="expected I/N with I from 1 to N, got "):
        values_of(part_option("x"), "--part", text)


@pytest.mark.parametrize(
    ("grid", "seeds", "whole"),
    [
        ([], None, []),
        (["objective=ce,kd"], None, ["objective=ce,kd"]),
        ([], 1, ["seed=0"]),
        (["objective=ce,kd"], 3, ["objective=ce,kd", "seed=0,1,2"]),
    ],
)
def test_seeds_are_one_more_key_of_the_grid(grid: Sequence[str], seeds: int | None, whole: list[str]) -> None:
    assert SweepOptions(grid, seeds, Part(0, 1), 1, False, None).whole_grid == whole
