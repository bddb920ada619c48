"""What one can do with a cache: write it in parts and processes, extend it, convert it, verify it, keep it far away."""

import io
import json
import shutil
import signal
import subprocess
import tarfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from dhkd.data.cache.reader import open_cache
from dhkd.data.patience import Patience
from dhkd.data.storage.bucket import Bucket
from dhkd.pipeline.api import DistillationSet

from tests import servers
from tests.conformance.places import s3_endpoint
from tests.e2e import joint_training
from tests.e2e.command_line import (
    COMMAND,
    ENVIRONMENT,
    SMALL,
    SMALL_VERIFY,
    Outcome,
    assert_one_line,
    dhkd,
    done,
    in_processes,
    spawn,
)
from tests.e2e.interrupted import MANY_BLOCKS, wait_until
from tests.few import few
from tests.samples import files_of

__all__ = ["s3_endpoint"]

GOLDEN = Path(__file__).parents[1] / "golden"
STORES = ("zarr", "webdataset")
HERE = ["data.limit=150", "teacher=resnet8"]  # the settings of data and teacher in SMALL


def caching(teacher: Path, out: object, *words: object) -> list[object]:
    return ["cache-teacher", "digits", *SMALL, "--teacher", teacher, "--out", out, "--json", *words]


def training(cache: object, out: Path, *settings: str) -> list[object]:
    chosen = [word for setting in ("objective=kd", "student.epochs=1", *settings) for word in ("--set", setting)]
    return ["train-student", "digits", *SMALL, *chosen, "--cache", cache, "--out", out, "--json"]


def times_of(cache: Path) -> dict[Path, int]:
    """When each file was written."""
    return {file: file.stat().st_mtime_ns for file in cache.rglob("*") if file.is_file()}


def blocks_of(cache: Path) -> dict[str, bytes]:
    """The files that hold rows."""
    return {name: content for name, content in files_of(cache).items() if "/c/" in name or name.endswith(".tar")}


@pytest.fixture(scope="session")
def wholes(cache: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small cache in each store, written by one uninterrupted process: never to be changed."""
    out = tmp_path_factory.mktemp("wholes") / "webdataset"
    done(*caching(teacher, out, "--store", "webdataset"))
    return {"zarr": cache, "webdataset": out}


# parts

# For what doesn't depend on the layout, which the conformance suite tests.
one_store = pytest.mark.parametrize("store", few(STORES, ["webdataset"]))


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def store_words(store: str) -> list[str]:
    """No option for the default, so that the command in the provenance is the one of `wholes`."""
    return [] if store == "zarr" else ["--store", store]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("store", "order"), few(product(STORES, [(1, 2, 3), (3, 1, 2)]), [("zarr", (3, 1, 2)), ("webdataset", (1, 2, 3))])
)
def test_parts_in_any_order(
    order: tuple[int, ...], store: str, wholes: dict[str, Path], teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c"
    words = caching(teacher, out, *store_words(store))
    for position, part in enumerate(order):
        outcome = done(*words, "--part", f"{part}/3")
        result = outcome.result
        assert (result["blocks_written"], result["blocks_left_to_others"]) == (2, 4 - 2 * position)
        assert result["complete"] == (position == 2)
        assert ("largest_difference_from_live" in result) == result["complete"]
        if not result["complete"]:
            assert_one_line(dhkd(*training(out, tmp_path / "run")), 1, [f"{2 + 2 * position} of 6 blocks are there"])
            before = times_of(out)
            again = done(*words, "--part", f"{part}/3").result
            assert (again["blocks_written"], again["complete"]) == (0, False)
            assert times_of(out) == before, "a part run twice does nothing"
    assert files_of(out) == files_of(wholes[store])
    before = times_of(out)
    assert done(*words, "--part", "2/3").result["complete"]
    assert {file: written for file, written in times_of(out).items() if file.name != "index.json"} == {
        file: written for file, written in before.items() if file.name != "index.json"
    }


def test_any_call_does_a_missing_part(store: str, wholes: dict[str, Path], teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "c"
    words = caching(teacher, out, *store_words(store))
    for part in ("1/3", "3/3"):
        printed = done(*[word for word in words if word != "--json"], "--part", part).out
    assert "not complete yet, 2 blocks are left to others" in printed
    before = times_of(out)
    result = done(*words).result
    assert (result["complete"], result["blocks_written"]) == (True, 2)
    assert times_of(out).items() >= before.items()
    assert files_of(out) == files_of(wholes[store])


@one_store
def test_more_parts_than_blocks(store: str, wholes: dict[str, Path], teacher: Path, tmp_path: Path) -> None:
    words = caching(teacher, tmp_path / "c", *store_words(store))
    results = [done(*words, "--part", f"{part}/9").result for part in range(9, 0, -1)]
    assert [result["blocks_written"] for result in results] == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert [result["complete"] for result in results] == [False] * 8 + [True]
    assert files_of(tmp_path / "c") == files_of(wholes[store])


@pytest.mark.parametrize("part", ["4/3", "0/2", "x", "1", "1/", "-1/2", "1/2/3", "1.5/2"])
def test_a_wrong_part(part: str, teacher: Path, tmp_path: Path) -> None:
    outcome = dhkd(*caching(teacher, tmp_path / "c"), f"--part={part}")
    assert (outcome.code, outcome.out) == (2, "")
    assert [line for line in outcome.err.splitlines() if "rror" in line] == [
        f"Error: Invalid value for '--part': expected I/N with I from 1 to N, got '{part}'"
    ]
    assert not (tmp_path / "c").exists()


# processes


@pytest.fixture(scope="module")
def written_by(wholes: dict[str, Path], teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    """Caches by store and number of processes; two processes that write zarr are tested elsewhere."""
    folder = tmp_path_factory.mktemp("written")
    caches = {(store, 1): whole for store, whole in wholes.items()}
    for store, number in (("zarr", 4), ("webdataset", 2)):
        out = folder / f"{store}-{number}"
        outcome = in_processes(number, *caching(teacher, out, *store_words(store)))
        assert outcome.code == 0, outcome.err
        assert outcome.result["processes"] == number
        caches[store, number] = out
    return caches


@pytest.mark.soak  # two processes that write zarr are in CI, in test_processes.py
def test_any_number_of_processes_writes_the_same_cache(written_by: dict[Any, Path], wholes: dict[str, Path]) -> None:
    for (store, _), cache in written_by.items():
        assert files_of(cache) == files_of(wholes[store])


@pytest.mark.soak
@pytest.mark.parametrize("readers", [1, 2])  # four are in the test below
def test_any_number_of_processes_reads_the_same_from_both_stores(
    readers: int, written_by: dict[Any, Path], tmp_path: Path
) -> None:
    """The student is the same to the bit, whichever processes wrote the cache and however it is laid out."""
    hashes = set()
    for store, writers in (("zarr", 4), ("webdataset", 2)):
        words = training(written_by[store, writers], tmp_path / store, "student.view_schedule=cycle")
        outcome = in_processes(readers, *words) if readers > 1 else dhkd(*words)
        assert outcome.code == 0, outcome.err
        assert outcome.result["processes"] == readers
        hashes.add(outcome.result["sha256"])
    assert len(hashes) == 1


@pytest.mark.soak  # two are in CI, in test_processes.py
def test_four_training_processes_take_the_steps_of_one(written_by: dict[Any, Path], tmp_path: Path) -> None:
    """Batch norm is frozen; shares are of 7 and 8 rows."""
    script = Path(joint_training.__file__)
    for number, cache in ((1, written_by["zarr", 1]), (4, written_by["webdataset", 2])):
        outcome = in_processes(number, cache, tmp_path / str(number), "kd:31", script=script)
        assert outcome.code == 0, outcome.err[-3000:]
    alone = torch.load(tmp_path / "1" / "kd:31" / "rank0.pt", weights_only=True)
    several = [torch.load(tmp_path / "4" / "kd:31" / f"rank{rank}.pt", weights_only=True) for rank in range(4)]
    for name, weights in alone.items():
        assert all(torch.equal(state[name], several[0][name]) for state in several)
        torch.testing.assert_close(several[0][name], weights, rtol=1e-3, atol=2e-5)


# tar shards


def test_a_student_from_tar_shards_is_that_from_zarr(wholes: dict[str, Path], tmp_path: Path) -> None:
    for schedule in ("student.view_schedule=independent", "student.view_schedule=cycle", "student.window=40"):
        settings = [schedule, *(["student.view_schedule=block"] if "window" in schedule else [])]
        zarr, tar = (
            done(*training(cache, tmp_path / f"{schedule}-{store}", *settings)).result["sha256"]
            for store, cache in wholes.items()
        )
        assert zarr == tar


def test_tar_shards_are_read_by_others(wholes: dict[str, Path]) -> None:
    """By webdataset and by tarfile, without our code: the values, and the keys that they belong to."""
    reader = open_cache(wholes["zarr"])
    shards = sorted(map(str, (wholes["webdataset"] / "shards" / "logits").rglob("*.tar")))
    assert len(shards) == 6
    seen = []
    for sample in webdataset.WebDataset(shards, shardshuffle=False).decode():
        for (view, index), logits in zip(sample["key.npy"], sample["logits.npy"], strict=True):
            np.testing.assert_array_equal(logits.astype(np.float32), reader.read(int(view), [int(index)])[0])
            seen.append((int(view), int(index)))
    assert seen == [(view, index) for view in range(3) for index in range(150)]

    with tarfile.open(shards[-1]) as shard:
        names = shard.getnames()
        assert names == ["00002-00001.key.npy", "00002-00001.logits.npy", "00002-00001.seal.json"]
        keys, logits = (np.load(io.BytesIO(shard.extractfile(name).read())) for name in names[:2])
        assert json.load(shard.extractfile(names[2]))["bytes"] == shard.getmember(names[2]).offset
    np.testing.assert_array_equal(keys, [(2, index) for index in range(75, 150)])
    np.testing.assert_array_equal(logits.astype(np.float32), reader.read(2, keys[:, 1]))


# more views, more teachers


def test_more_views(store: str, teacher: Path, tmp_path: Path) -> None:
    out, fresh = tmp_path / "c", tmp_path / "fresh"
    words = store_words(store)
    done(*caching(teacher, out, *words, "--views", "2"))
    first = done(*training(out, tmp_path / "before")).result
    before = {file: written for file, written in times_of(out).items() if str(file.relative_to(out)) in blocks_of(out)}

    # Half of the new views are written: readers see what was complete before.
    part = done(*caching(teacher, out, *words, "--views", "4", "--part", "1/2")).result
    assert (part["complete"], part["blocks_written"], part["blocks_left_to_others"]) == (False, 2, 2)
    meanwhile = done(*training(out, tmp_path / "meanwhile")).result
    assert (meanwhile["sha256"], meanwhile["cache"]["views"]) == (first["sha256"], 2)
    facts = done("inspect", out, "--json").result
    assert (facts["complete"], facts["complete_views"], facts["views"]) == (False, 2, 4)
    assert (facts["blocks_done"], facts["blocks"]) == (6, 8)
    assert done("verify", out, "--json").result["damaged"] == []

    rest = done(*caching(teacher, out, *words, "--views", "4")).result
    assert (rest["complete"], rest["blocks_written"], rest["cache"]["views"]) == (True, 2, 4)
    assert times_of(out).items() >= before.items(), "the first blocks are not written again"
    done(*caching(teacher, fresh, *words, "--views", "4"))
    assert blocks_of(out) == blocks_of(fresh)
    assert open_cache(out).manifest.digest == open_cache(fresh).manifest.digest
    after = done(*training(out, tmp_path / "after")).result
    assert after["cache"]["views"] == 4
    assert after["sha256"] == done(*training(fresh, tmp_path / "after-fresh")).result["sha256"]
    assert_one_line(
        dhkd(*caching(teacher, out, *words, "--views", "3")),
        1,
        ["views expected at least 4, as it was begun with, got 3"],
    )


@pytest.fixture(scope="module")
def of_other(other_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the other teacher alone."""
    out = tmp_path_factory.mktemp("other") / "c.zarr"
    done(*caching(other_teacher, out))
    return out


@one_store
def test_another_teacher(
    store: str, wholes: dict[str, Path], teacher: Path, other_teacher: Path, of_other: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(wholes[store], tmp_path / "c")
    before = {file: times for file, times in times_of(out).items() if str(file.relative_to(out)) in blocks_of(out)}
    words = [*store_words(store), "--name", "b"]
    part = done(*caching(other_teacher, out, *words, "--part", "2/2")).result
    assert (part["complete"], part["blocks_left_to_others"]) == (False, 3)
    assert done("inspect", out, "--json").result["complete_signals"] == ["logits"]
    assert_one_line(dhkd(*training(out, tmp_path / "early", "student.teacher=b")), 1, ["b.logits, it holds logits;"])

    assert done(*caching(other_teacher, out, *words)).result["complete"]
    assert times_of(out).items() >= before.items()
    facts = done("inspect", out, "--json").result
    assert facts["complete_signals"] == ["b.logits", "logits"]
    hashes = [facts["identity"]["signals"][name]["teacher"]["sha256"] for name in ("logits", "b.logits")]
    assert hashes == [json.loads((run / "result.json").read_text())["sha256"] for run in (teacher, other_teacher)]
    table = done("inspect", out).out
    assert "b.logits" in table

    students = {
        name: done(*training(out, tmp_path / name, f"student.teacher={name}")).result["sha256"]
        for name in ("null", "b", "mean")
    }
    assert students["null"] == done(*training(wholes[store], tmp_path / "alone")).result["sha256"]
    assert students["b"] == done(*training(of_other, tmp_path / "other-alone")).result["sha256"]
    assert len(set(students.values())) == 3
    assert_one_line(
        dhkd(*training(out, tmp_path / "c-run", "student.teacher=c")), 1, ["c.logits, it holds b.logits, logits;"]
    )

    views = [
        torch.stack([item[2] for item in DistillationSet("digits", place, overrides=settings).__getitems__(range(150))])
        for place, settings in (
            (wholes["zarr"], HERE),
            (of_other, HERE),
            (out, HERE),
            (out, [*HERE, "student.teacher=b"]),
            (out, [*HERE, "student.teacher=mean"]),
        )
    ]
    of_first, of_second, by_default, by_name, of_both = views
    assert torch.equal(by_default, of_first)
    assert torch.equal(by_name, of_second)
    assert torch.equal(of_both, (of_first + of_second) / 2)


@one_store
def test_more_views_of_one_teacher_alone(store: str, teacher: Path, other_teacher: Path, tmp_path: Path) -> None:
    """A cache has only the views that all of its teachers have."""
    out = tmp_path / "c"
    words = store_words(store)
    done(*caching(teacher, out, *words, "--views", "2", "--name", "a"))
    done(*caching(other_teacher, out, *words, "--views", "2", "--name", "b"))
    extended = [*words, "--views", "4", "--name"]
    one = done(*caching(teacher, out, *extended, "a")).result
    assert (one["complete"], one["blocks_written"], one["blocks_left_to_others"]) == (False, 4, 4)
    for name in ("a", "mean"):
        assert done(*training(out, tmp_path / name, f"student.teacher={name}")).result["cache"]["views"] == 2
    facts = done("inspect", out, "--json").result
    assert (facts["complete"], facts["complete_views"], facts["views"]) == (False, 2, 4)
    assert (facts["blocks_done"], facts["blocks"]) == (4, 8)
    two = done(*caching(other_teacher, out, *extended, "b")).result
    assert (two["complete"], two["blocks_written"]) == (True, 4)
    assert open_cache(out).plan.num_views == 4


# convert


def test_there_and_back_again(wholes: dict[str, Path], tmp_path: Path) -> None:
    for here, there in (("zarr", "webdataset"), ("webdataset", "zarr")):
        printed = done("convert", wholes[here], tmp_path / here / "1", "--store", there).out
        assert f"complete, {there}" in printed
        assert blocks_of(tmp_path / here / "1") == blocks_of(wholes[there])
        done("convert", tmp_path / here / "1", tmp_path / here / "2", "--store", here)
        assert files_of(tmp_path / here / "2") == files_of(wholes[here])
        before = times_of(tmp_path / here / "2")
        again = done("convert", tmp_path / here / "1", tmp_path / here / "2", "--store", here, "--json").result
        assert again["blocks_written"] == 0
        assert {f for f, t in times_of(tmp_path / here / "2").items() if before[f] != t} <= {
            tmp_path / here / "2" / "index.json"
        }


def test_a_lossless_conversion_needs_no_option(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "c32"
    done("convert", cache, out, "--codec", "float32")
    reader, wide = open_cache(cache), open_cache(out)
    for view in range(3):
        np.testing.assert_array_equal(wide.read_view(view), reader.read_view(view))
    bound = done("inspect", cache, "--json").result["bounds"]["logits"]["error"]
    facts = done("inspect", out, "--json").result
    assert facts["identity"]["signals"]["logits"]["codec"] == {"kind": "float32"}
    assert facts["bounds"]["logits"]["error"] == bound > 0, "float32 does not bring back what float16 lost"
    assert (
        done(*training(out, tmp_path / "wide")).result["sha256"]
        == (done(*training(cache, tmp_path / "narrow")).result["sha256"])
    )


def test_a_lossy_conversion_needs_an_option(cache: Path, tmp_path: Path) -> None:
    words = ["convert", cache, tmp_path / "c8", "--codec", "int8"]
    assert_one_line(dhkd(*words), 2, ["from float16 to int8 loses information", "--allow-loss"])
    assert not (tmp_path / "c8").exists()
    result = done(*words, "--allow-loss", "--json").result
    bound = done("inspect", cache, "--json").result["bounds"]["logits"]["error"]
    facts = done("inspect", tmp_path / "c8", "--json").result
    assert facts["provenance"]["logits"]["codec_before"] == "float16"
    assert facts["provenance"]["logits"]["error_before"] == bound
    assert done("verify", tmp_path / "c8", "--json").result["damaged"] == []
    assert facts["bounds"] == result["bounds"]
    assert facts["bounds"]["logits"]["error"] > bound, "its error is added to the one before"
    difference = np.abs(open_cache(tmp_path / "c8").read_view(1) - open_cache(cache).read_view(1)).max()
    assert 0 < difference <= facts["bounds"]["logits"]["error"] - bound
    done(*training(tmp_path / "c8", tmp_path / "run", "objective=dhkd"))


@pytest.fixture(scope="module")
def top_k(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("top-k") / "c"
    words = ["convert", cache, out, "--codec", "top-k", "--k", "3", "--temperature", "4"]
    assert_one_line(dhkd(*words), 2, ["from float16 to top-k loses information"])
    done(*words, "--allow-loss")
    return out


@pytest.mark.parametrize("codec", [["float32"], ["int8"], ["top-k", "--k", "2", "--temperature", "4"]])
def test_the_largest_logits_alone_are_not_converted(codec: list[str], top_k: Path, tmp_path: Path) -> None:
    outcome = dhkd("convert", top_k, tmp_path / "c", "--codec", *codec, "--allow-loss")
    assert_one_line(outcome, 2, ["holds 3 logits of a row", "cache the teacher again"])
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        ("objective=dhkd", "needs raw logits of all classes"),
        ("objective=binary-kl", "needs raw logits of all classes"),
        ("objectives.kd.temperature=2", "needs probabilities at temperature 2"),
    ],
)
def test_objectives_that_the_largest_logits_can_not_serve(
    objective: str, says: str, top_k: Path, tmp_path: Path
) -> None:
    outcome = dhkd(*training(top_k, tmp_path / "run", objective))
    assert_one_line(outcome, 1, [says, "the 3 largest logits of a row and the others' mass at temperature 4"])
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_objectives_that_the_largest_logits_serve(top_k: Path, tmp_path: Path) -> None:
    """In either store."""
    done("convert", top_k, tmp_path / "tar", "--store", "webdataset")
    one, other = (
        done(*training(cache, tmp_path / name)).result["sha256"]
        for name, cache in (("a", top_k), ("b", tmp_path / "tar"))
    )
    assert one == other
    done(*training(top_k, tmp_path / "ce", "objective=ce"))


@pytest.mark.soak
def test_kill_9_of_convert_then_the_same_command(teacher: Path, tmp_path: Path) -> None:
    many, out = tmp_path / "many", tmp_path / "tar"
    done("cache-teacher", "digits", *MANY_BLOCKS, "--teacher", teacher, "--out", many)
    words = ["convert", many, out, "--store", "webdataset", "--json"]
    process = spawn(*words)
    wait_until(lambda: len(list(out.rglob("logits/**/*.tar"))) >= 5, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert_one_line(dhkd(*training(out, tmp_path / "run")), 1, ["blocks are there", "again with the same arguments"])
    before = {file: written for file, written in times_of(out).items() if file.suffix == ".tar"}
    result = done(*words).result
    total = open_cache(many).plan.num_views * open_cache(many).plan.blocks_per_view
    assert total - len(before) // 2 - 1 <= result["blocks_written"] <= total - 4
    assert times_of(out).items() >= before.items()
    done("convert", out, tmp_path / "back", "--store", "zarr")
    assert files_of(tmp_path / "back") == files_of(many)


def test_convert_overwrites_nothing(cache: Path, of_other: Path, tmp_path: Path) -> None:
    out = shutil.copytree(of_other, tmp_path / "c")
    before = files_of(out)
    assert_one_line(dhkd("convert", cache, out), 1, ["teacher.sha256 expected", "another --out"])
    assert_one_line(dhkd("convert", of_other, out, "--store", "webdataset"), 1, ["store expected zarr"])
    assert_one_line(
        dhkd("convert", of_other, out, "--codec", "float32"), 1, ["codec.kind expected float32, got float16"]
    )
    assert files_of(out) == before
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "precious").write_text("precious")
    assert_one_line(dhkd("convert", cache, tmp_path / "used"), 1, ["expected an empty folder", "precious"])
    assert [file.name for file in (tmp_path / "used").iterdir()] == ["precious"]


# verify


def test_verify_lists_all_that_is_damaged(store: str, wholes: dict[str, Path], teacher: Path, tmp_path: Path) -> None:
    out = shutil.copytree(wholes[store], tmp_path / "c")
    assert "good; " in done("verify", out).out
    assert done("verify", out, "--json").result["damaged"] == []
    changed, cut, gone, swapped, other = sorted(out / name for name in blocks_of(out) if "logits" in name)[:5]
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-1])
    gone.unlink()
    swapped.write_bytes(other.read_bytes())

    outcome = dhkd("verify", out, "--json")
    assert outcome.code == 1
    damaged = {entry["key"]: entry for entry in outcome.result["damaged"]}
    assert damaged.keys() == {str(file.relative_to(out)) for file in (changed, cut, gone, swapped)}
    assert all(entry["block"].startswith("view ") and entry["reason"] for entry in damaged.values())
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error")]
    assert all(key in line for key in damaged)
    assert "4 of " in line
    assert_one_line(dhkd("verify", out), 1, ["4 of ", "rewrites only"])

    repaired = done(*caching(teacher, out, *store_words(store))).result
    assert repaired["complete"]
    assert repaired["blocks_repaired"] + repaired["blocks_written"] >= 4
    assert files_of(out) == files_of(wholes[store])
    assert "good; " in done("verify", out).out


# far away


def served(bucket: servers.S3, monkeypatch: pytest.MonkeyPatch, endpoint: str | None = None) -> None:
    for name, value in bucket.env(endpoint).items():
        monkeypatch.setenv(name, value)


@one_store
@pytest.mark.slow
def test_both_stages_over_s3_and_http(
    store: str,
    wholes: dict[str, Path],
    teacher: Path,
    s3_endpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = servers.make_bucket(s3_endpoint)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    expected = done(*training(wholes[store], tmp_path / "local")).result["sha256"]
    url = f"{bucket.url}/caches/c"
    with servers.flaky(s3_endpoint) as proxy:
        served(bucket, monkeypatch, proxy.url)
        for part, complete in (("2/2", False), ("1/2", True)):
            result = done(*caching(teacher, url, *store_words(store), "--part", part)).result
            assert (result["complete"], result["blocks_written"]) == (complete, 3)
        assert done(*caching(teacher, url, *store_words(store))).result["blocks_written"] == 0
        facts = done("inspect", url, "--json").result
        assert (facts["complete"], facts["store"], facts["path"]) == (True, store, url)
        assert facts["digest"] == open_cache(wholes[store]).manifest.digest

        proxy.requests.clear()
        for run in ("one", "two"):
            out = tmp_path / run
            assert done(*training(url, out), "--fetched-gb", "1").result["sha256"] == expected
        assert more_or_less_than_once(proxy, wholes[store], witnesses=False) == {}
        assert list((tmp_path / "xdg" / "dhkd" / "objects").iterdir())
        proxy.requests.clear()
        assert done("verify", url, "--json").result["damaged"] == []
        assert more_or_less_than_once(proxy, wholes[store], witnesses=True) == {}, "verify reads the place itself"

        done("convert", url, tmp_path / "web" / "c")
    assert files_of(tmp_path / "web" / "c") == files_of(wholes[store])
    with servers.web(tmp_path / "web") as web:
        for run in ("three", "four"):
            assert done(*training(f"{web.url}/c", tmp_path / run)).result["sha256"] == expected
        assert more_or_less_than_once(web, wholes[store], witnesses=False) == {}
        web.requests.clear()
        done("verify", f"{web.url}/c", "--preset", "digits", *SMALL_VERIFY, "--teacher", teacher)
        assert done("inspect", f"{web.url}/c", "--json").result["complete"]
        assert_one_line(dhkd(*caching(teacher, f"{web.url}/d")), 1, ["only read"])


def more_or_less_than_once(server: servers.Counted, cache: Path, *, witnesses: bool) -> dict[str, int]:
    """The blocks of the logits, or of all arrays, that were not asked for exactly once, and how often each was."""
    wanted = [name for name in blocks_of(cache) if witnesses or "logits" in name]
    counts = {name: sum(server.count(f"GET /{start}c/{name}") for start in prefixes(server)) for name in wanted}
    return {name: count for name, count in counts.items() if count != 1}


def prefixes(server: servers.Counted) -> set[str]:
    """What stands before the cache's name in paths: the bucket and its folder, or nothing."""
    asked = [request.split(" /", 1)[1] for request in server.requests]
    # From the right: a bucket's name, which is random, may end in c as well.
    return {path.rpartition("c/index.json")[0] for path in asked if "/c/index.json" in f"/{path}"}


NOWHERE = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": servers.REGION,
}


def test_a_wrong_endpoint_is_reported(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After three attempts; how long all of them take is in the soak."""
    for name, value in NOWHERE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Bucket.__init__, "__defaults__", (Patience(retries=2),))
    assert_one_line(dhkd(*caching(teacher, "s3://bucket/c")), 1, ["can't be reached", "AWS_ENDPOINT_URL"])


@pytest.mark.soak
def test_a_wrong_endpoint_is_reported_soon(teacher: Path) -> None:
    began = time.monotonic()
    run = subprocess.run(
        [*COMMAND, *map(str, caching(teacher, "s3://bucket/c"))],
        env={**ENVIRONMENT, **NOWHERE}, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert_one_line(Outcome(run.returncode, run.stdout, run.stderr), 1, ["can't be reached", "AWS_ENDPOINT_URL"])
    assert time.monotonic() - began < 120
