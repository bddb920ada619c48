"""`cache-teacher --on` and `verify --on`: whichever workers come and are lost, the bytes are those of one process."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from dhkd.data.cache.reader import open_cache
from dhkd.data.storage.folder import Folder
from dhkd.data.storage.places import storage_of
from dhkd.pipeline import caching_on, on_workers, verify_on
from dhkd.pipeline.engines.base import Needs
from dhkd.stages import processes

from tests import servers
from tests.conformance.places import s3_endpoint
from tests.e2e.command_line import SMALL, SMALL_VERIFY, Outcome, assert_one_line, dhkd, done, spawn
from tests.samples import files_of
from tests.turns import Lost, Turns

__all__ = ["s3_endpoint"]

ON = ["--on", "ray"]  # whose place the tests' engine takes


@contextmanager
def on(engine: Turns) -> Iterator[None]:
    """Let commands with --on use this engine."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (caching_on, verify_on):
            patch.setattr(module, "engine_of", lambda options: nullcontext(engine))
        yield


def caching(teacher: Path, out: object, *words: object) -> list[object]:
    return ["cache-teacher", "digits", *SMALL, "--teacher", teacher, "--out", out, *ON, "--json", *words]


def cached(engine: Turns, *words: object) -> Outcome:
    with on(engine):
        return dhkd(*words)


def blocks_of(cache: Path) -> dict[str, bytes]:
    """The files that hold rows."""
    return {name: content for name, content in files_of(cache).items() if "/c/" in name}


def test_a_cache_of_several_workers_is_that_of_one_process(cache: Path, teacher: Path, tmp_path: Path) -> None:
    engine = Turns(units_each=2)
    outcome = cached(engine, *caching(teacher, tmp_path / "c"))
    assert outcome.code == 0, outcome.err
    assert files_of(tmp_path / "c") == files_of(cache)
    kinds = [kind for kind, _, _ in engine.done]
    assert kinds == ["BeginWork", *["ComputeWork"] * 5, "CheckWork", "FinishWork"]
    assert {node for kind, node, _ in engine.done if kind == "ComputeWork"} == {"one", "two", "three"}
    result = outcome.result
    assert (result["complete"], result["blocks_written"], result["rows_written"]) == (True, 6, 450)
    assert (result["blocks_repaired"], result["blocks_left_to_others"], result["processes"]) == (0, 0, 4)
    assert result["largest_difference_from_live"] < 0.1
    assert result["cache"]["path"] == str(tmp_path / "c")
    alone = done("cache-teacher", "digits", *SMALL, "--teacher", teacher, "--out", tmp_path / "c", "--json").result
    assert {**result, **{name: alone[name] for name in SPENT}} == alone
    assert engine.needs == {
        "BeginWork": Needs(), "ComputeWork": Needs(), "CheckWork": Needs(), "FinishWork": Needs(),
    }  # fmt: skip


SPENT = ("blocks_written", "rows_written", "seconds", "rows_per_second", "processes")


def test_units_of_lost_workers_go_to_others(
    cache: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers are lost before, between and after the objects of a block."""
    puts = 0
    put = Folder.put

    def losing(self: Folder, key: str, content: bytes, *, replace: bool) -> bool:
        nonlocal puts
        puts += "/c/" in key
        if puts in (4, 7, 11):
            puts += 1
            if puts % 2:
                put(self, key, content, replace=replace)
            raise Lost
        return put(self, key, content, replace=replace)

    monkeypatch.setattr(Folder, "put", losing)
    engine = Turns()
    outcome = cached(engine, *caching(teacher, tmp_path / "c"))
    assert outcome.code == 0, outcome.err
    assert len([kind for kind, _, _ in engine.done if kind == "ComputeWork"]) == 5 + 3
    assert files_of(tmp_path / "c") == files_of(cache)


def test_what_fails_on_the_way_is_tried_again(
    cache: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full for a moment stops only the unit that needed it."""
    put, fails = Folder.put, iter([False] * 4 + [True])

    def full(self: Folder, key: str, content: bytes, *, replace: bool) -> bool:
        if "/c/" in key and next(fails, False):
            raise OSError(errno.ENOSPC, "No space left on device", key)
        return put(self, key, content, replace=replace)

    monkeypatch.setattr(Folder, "put", full)
    outcome = cached(Turns(), *caching(teacher, tmp_path / "c"))
    assert outcome.code == 0, outcome.err
    assert "No space left on device" in outcome.err
    assert "this is tried again later" in outcome.err
    assert files_of(tmp_path / "c") == files_of(cache)


def test_an_interrupted_command_is_given_again(
    cache: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, keys = Folder.put, iter(range(1000))

    def interrupted(self: Folder, key: str, content: bytes, *, replace: bool) -> bool:
        if "/c/" in key and next(keys) == 7:
            raise KeyboardInterrupt
        return put(self, key, content, replace=replace)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "put", interrupted)
        outcome = cached(Turns(), *caching(teacher, tmp_path / "c"))
    assert_one_line(outcome, 130, ["interrupted; run the same command again"])
    again = cached(Turns(), *caching(teacher, tmp_path / "c"))
    assert again.code == 0, again.err
    assert again.result["blocks_written"] == 3
    assert files_of(tmp_path / "c") == files_of(cache), "nothing is left of the mark of the interrupted command"


def test_another_command_on_the_same_cache(cache: Path, teacher: Path, tmp_path: Path) -> None:
    """While workers of this one begin, another command, on this machine alone, finishes the whole cache."""
    words = caching(teacher, tmp_path / "c")
    turns = iter(range(100))

    @contextmanager
    def other(node: str) -> Iterator[None]:
        if next(turns) == 2:
            process = spawn(*[word for word in words if word not in ON])
            assert process.wait(timeout=120) == 0
        yield

    engine = Turns(units_each=1, on_node=other)
    outcome = cached(engine, *words)
    assert outcome.code == 0, outcome.err
    assert outcome.result["complete"]
    assert outcome.result["blocks_written"] == 2
    assert engine.refused == {}
    assert files_of(tmp_path / "c") == files_of(cache)


def test_a_bucket_that_refuses_now_and_then(
    cache: Path, teacher: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = servers.make_bucket(s3_endpoint)
    url = f"{bucket.url}/c"
    with servers.flaky(s3_endpoint, servers.every(5, servers.Fault("status", 503))) as proxy:
        for name, value in bucket.env(proxy.url).items():
            monkeypatch.setenv(name, value)
        outcome = cached(Turns(), *caching(teacher, url))
        assert outcome.code == 0, outcome.err
        assert verified(Turns(), url).code == 0
        assert proxy.count() > 50
    for name, value in bucket.env().items():
        monkeypatch.setenv(name, value)
    storage = storage_of(url)
    assert {key: storage.get(key) for key in storage.sizes() or ()} == files_of(cache)


@contextmanager
def moved(path: Path, other: Path | None = None) -> Iterator[None]:
    """Take a file or folder away, or put another in its place, while the context lasts."""
    aside = path.with_name(f"{path.name}-aside")
    path.rename(aside)
    if other is not None:
        shutil.copytree(other, path)
    try:
        yield
    finally:
        if path.exists():
            shutil.rmtree(path)
        aside.rename(path)


def test_a_node_with_another_teacher_gets_no_work(
    cache: Path, teacher: Path, other_teacher: Path, tmp_path: Path
) -> None:
    here = shutil.copytree(teacher, tmp_path / "teacher")
    engine = Turns(on_node=lambda node: moved(here, other_teacher) if node == "two" else nullcontext())
    outcome = cached(engine, *caching(here, tmp_path / "c"))
    assert outcome.code == 0, outcome.err
    assert "teacher.sha256 expected" in str(engine.refused["two"][0])
    assert {node for kind, node, _ in engine.done if kind != "CheckWork"} == {"one", "three"}
    assert blocks_of(tmp_path / "c") == blocks_of(cache)


def test_a_node_without_the_teacher_gets_no_work(teacher: Path, tmp_path: Path) -> None:
    here = shutil.copytree(teacher, tmp_path / "teacher")
    engine = Turns(on_node=lambda node: moved(here) if node != "three" else nullcontext())
    outcome = cached(engine, *caching(here, tmp_path / "c"))
    assert outcome.code == 0, outcome.err
    assert {node for kind, node, _ in engine.done if kind != "CheckWork"} == {"three"}
    assert all(str(here) in str(error) for errors in engine.refused.values() for error in errors)


@pytest.mark.parametrize("elsewhere", ["nothing", "a copy"])
def test_a_node_with_a_folder_of_its_own_gets_no_work(
    elsewhere: str, cache: Path, teacher: Path, tmp_path: Path
) -> None:
    """Also if it holds what looks like the same cache: what is written there would be seen by nobody."""
    out = tmp_path / "c"

    @contextmanager
    def private(node: str) -> Iterator[None]:
        with moved(out, unfinished if elsewhere == "a copy" else None) if node == "two" else nullcontext():
            yield

    unfinished = shutil.copytree(cache, tmp_path / "unfinished")
    (unfinished / "index.json").unlink()
    engine = Turns(on_node=private)
    outcome = cached(engine, *caching(teacher, out))
    assert outcome.code == 0, outcome.err
    assert engine.refused.keys() == {"two"}
    assert all("expected the one that was begun on" in str(error) for error in engine.refused["two"])
    assert {node for _, node, _ in engine.done} == {"one", "three"}
    assert files_of(out) == files_of(cache)


def test_precision_is_decided_once(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first worker's processor computes bf16 fast, and those of the others don't."""

    @contextmanager
    def of(node: str) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(processes, "cpu_capabilities", lambda: {"amx_bf16": node == "one"})
            yield

    out = tmp_path / "c"
    words = ["auto" if word == "float32" else word for word in caching(teacher, out)]
    engine = Turns(on_node=of)
    outcome = cached(engine, *words)
    assert outcome.code == 0, outcome.err
    assert engine.refused == {}
    assert open_cache(out).manifest.signals["logits"].precision == "bf16"


def test_damaged_blocks_are_computed_again(cache: Path, teacher: Path, tmp_path: Path) -> None:
    out = shutil.copytree(cache, tmp_path / "c")
    changed, gone = sorted(out / name for name in blocks_of(out) if "logits" in name)[:2]
    changed.write_bytes(bytes(changed.stat().st_size))
    gone.unlink()
    engine = Turns(units_each=1)
    outcome = cached(engine, *caching(teacher, out))
    assert outcome.code == 0, outcome.err
    assert (outcome.result["blocks_written"], outcome.result["blocks_repaired"]) == (2, 1)
    assert "its block is computed again" in outcome.err
    assert files_of(out) == files_of(cache)


def test_another_teacher_whose_blocks_are_missing(
    cache: Path, teacher: Path, other_teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c"
    part = cached(Turns(), *caching(teacher, out))
    assert part.code == 0, part.err
    more = [word for word in caching(other_teacher, out, "--name", "b", "--part", "1/2") if word not in ON]
    assert not done(*more).result["complete"]
    outcome = cached(engine := Turns(), *caching(teacher, out, "--views", "4"))
    assert outcome.code == 0, outcome.err
    result = outcome.result
    assert (result["complete"], result["blocks_written"]) == (False, 2)
    assert result["blocks_left_to_others"] == 5, "3 of the first views, and both of the new one"
    assert [kind for kind, _, _ in engine.done][-1] == "ListWork"
    assert not list(out.glob("*.partial"))


def test_the_engine_deals_all_of_the_work_out(teacher: Path, tmp_path: Path) -> None:
    outcome = cached(engine := Turns(), *caching(teacher, tmp_path / "c", "--part", "1/2"))
    assert outcome.code == 2
    assert "--part: expected none beside --on" in outcome.err
    assert engine.done == []


# verify


def verified(engine: Turns, cache: Path, *words: object) -> Outcome:
    with on(engine):
        return dhkd("verify", cache, *ON, "--json", *words)


def test_verify(cache: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_workers, "READ_BYTES", 4000)
    words = ["--preset", "digits", *SMALL_VERIFY, "--teacher", teacher]
    engine = Turns(units_each=1)
    outcome = verified(engine, cache, *words)
    assert outcome.code == 0, outcome.err
    expected = done("verify", cache, "--json", *words).result
    assert {**outcome.result, "seconds": 0} == {**expected, "seconds": 0}
    assert [kind for kind, _, _ in engine.done] == ["OpenWork", *["ReadWork"] * 4, "SampleWork"]
    assert {node for kind, node, _ in engine.done if kind == "ReadWork"} == {"one", "two", "three"}


def test_verify_lists_damage_as_one_process_does(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_workers, "READ_BYTES", 4000)
    out = shutil.copytree(cache, tmp_path / "c")
    first, *_, last = sorted(out / name for name in blocks_of(out))
    first.write_bytes(bytes(first.stat().st_size))
    last.unlink()
    (out / "zarr.json").write_text("{}")
    outcome = verified(Turns(units_each=1), out)
    expected = dhkd("verify", out, "--json")
    assert outcome.code == expected.code == 1
    assert outcome.result["damaged"] == expected.result["damaged"]
    assert len(expected.result["damaged"]) == 3
    assert error_line(outcome) == error_line(expected)


def error_line(outcome: Outcome) -> str:
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error")]
    return line


def test_verify_on_a_node_without_the_cache(cache: Path, tmp_path: Path) -> None:
    out = shutil.copytree(cache, tmp_path / "c")
    engine = Turns(on_node=lambda node: moved(out) if node == "one" else nullcontext())
    assert verified(engine, out).code == 0
    assert {type(error).__name__ for error in engine.refused["one"]} == {"CacheIncomplete"}
    assert_one_line(verified(Turns(), tmp_path / "none"), 1, ["expected a dhkd cache, found none"])
