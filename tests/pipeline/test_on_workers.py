"""Which failures of a worker's unit are tried again, and how work is cut into units."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from dhkd.data.cache.blocks import Block, Plan
from dhkd.data.errors import CacheMismatch, NonFiniteLoss, StorageError
from dhkd.pipeline.caching_on import UNIT_SECONDS, grouped
from dhkd.pipeline.engines.base import Needs, Tell
from dhkd.pipeline.on_workers import MOST_FAILURES, absolute, results

from tests.turns import Turns

FAILURES: dict[str, list[Exception]] = {}  # what a unit raises, one time after the other, before it succeeds


@dataclass(frozen=True)
class Failing:
    """A work whose units fail as `FAILURES` says."""

    @contextmanager
    def begun(self, tell: Tell) -> Iterator[Callable[[str], str]]:
        def do(unit: str) -> str:
            if FAILURES.get(unit):
                raise FAILURES[unit].pop(0)
            return f"{unit} done"

        yield do


@pytest.fixture(autouse=True)
def no_failures() -> Iterator[None]:
    FAILURES.clear()
    yield
    FAILURES.clear()


def done(units: Sequence[str]) -> list[tuple[str, str]]:
    return list(results(Turns(), Failing(), units, Needs()))


@pytest.mark.parametrize("error", [StorageError("503"), OSError(28, "No space left"), RuntimeError("CUDA error")])
def test_what_may_pass_is_tried_again_after_all_others(error: Exception) -> None:
    FAILURES["b"] = [error]
    assert done("abcd") == [(unit, f"{unit} done") for unit in "acdb"]


@pytest.mark.parametrize("error", [NonFiniteLoss("nan"), CacheMismatch("other pixels"), KeyError("a bug")])
def test_what_would_come_again_is_raised_at_once(error: Exception) -> None:
    FAILURES["b"] = [error]
    ended = []
    with pytest.raises(type(error)):
        ended += results(Turns(), Failing(), "abcd", Needs())
    assert [unit for unit, _ in ended] in ([], ["a"])


def test_a_unit_that_fails_twice_ends_the_command() -> None:
    FAILURES["b"] = [StorageError("503"), StorageError("503 again")]
    with pytest.raises(StorageError, match="503 again"):
        done("abcd")


def test_trouble_that_is_everywhere_ends_the_command() -> None:
    for unit in "bcdefg":
        FAILURES[unit] = [StorageError(f"503 for {unit}")]
    with pytest.raises(StorageError, match="503 for d"):
        done("abcdefg")
    assert MOST_FAILURES == 3


def blocks(number: int, rows: int) -> tuple[tuple[Block, ...], ...]:
    return tuple((block,) for block in Plan(number, rows, rows).blocks())


def test_a_unit_takes_about_as_long_as_it_should() -> None:
    units = blocks(10_000, 100)
    groups = list(grouped(units, rate=200.0))
    assert [unit for group in groups for unit in group] == list(units)
    assert {len(group) for group in groups} == {int(UNIT_SECONDS * 200 / 100)}


def test_a_slow_worker_and_an_unknown_rate_get_single_units() -> None:
    units = blocks(1000, 100)
    assert all(len(group) == 1 for rate in (0.0, 1.0) for group in grouped(units, rate))


def test_many_workers_share_a_small_cache() -> None:
    assert len(list(grouped(blocks(200, 10), rate=1e6))) >= 64
    assert len(list(grouped(blocks(20, 10), rate=1e6))) == 20
    assert list(grouped((), rate=1e6)) == []


def test_paths_are_the_same_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.pth").touch()
    assert absolute("t.pth") == str(tmp_path / "t.pth")
    assert absolute("t.pth::model") == f"{tmp_path / 't.pth'}::model"
    for same in ("packaged:v1", "s3://bucket/c", "nothing-here", str(tmp_path / "t.pth")):
        assert absolute(same) == same
