"""What commands give back, and the JSON that it becomes."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from dhkd.data.errors import RunMismatch
from dhkd.pipeline.results import (
    CachedTeacher,
    CacheSummary,
    DamagedObject,
    Demo,
    DemoRun,
    Distillation,
    Exported,
    Inspected,
    LiveDifferences,
    SignalBounds,
    Swept,
    TrainedRun,
    Verified,
    plain,
)

SUMMARY = CacheSummary(
    path="c.zarr",
    digest="d" * 64,
    teacher="resnet8",
    teacher_sha256="a" * 64,
    views=3,
    samples=150,
    classes=10,
    signals={"logits": "float16"},
    row_bytes=20,
)
SUMMARY_KEYS = ["path", "digest", "teacher", "teacher_sha256", "views", "samples", "classes", "signals", "row_bytes"]
TEACHER = TrainedRun(
    role="teacher",
    architecture="resnet8",
    parameters=77_850,
    epochs=2,
    last_top1=70.5,
    best_top1=71.0,
    last_top5=95.0,
    best_top5=95.5,
    seconds=1.25,
    samples_per_second=310.5,
    seed=0,
    sha256="b" * 64,
    precision="float32",
    hardware="a CPU, 1 threads",
    processes=1,
    versions={"python": "3.11", "torch": "2.7"},
)
STUDENT = replace(
    TEACHER,
    role="student",
    distillation=Distillation(objective="kd + rkd", cache=SUMMARY, live=["embedding"], together=2),
)
FIGURES = ["role", "architecture", "parameters", "epochs", "last_top1", "best_top1", "last_top5", "best_top5"]
FIGURES += ["seconds", "samples_per_second", "seed"]
ORIGIN = ["sha256", "precision", "hardware", "processes", "versions"]
DIFFERENCES = LiveDifferences(largest_difference_from_live=0.02, differences_from_live={"logits": 0.02})
CACHED = CachedTeacher(
    cache=SUMMARY,
    complete=False,
    blocks_written=0,
    blocks_repaired=0,
    blocks_left_to_others=4,
    rows_written=0,
    seconds=0.1,
    rows_per_second=None,
    teacher_top1=70.5,
    processes=1,
    versions={},
)
CACHED_KEYS = ["cache", "complete", "blocks_written", "blocks_repaired", "blocks_left_to_others", "rows_written"]
CACHED_KEYS += ["seconds", "rows_per_second", "teacher_top1"]
LIVE_KEYS = ["largest_difference_from_live", "differences_from_live"]
VERIFIED = Verified(cache=SUMMARY, objects=9, bytes=1000, seconds=0.5, damaged=[])


def without_cache(run: TrainedRun) -> TrainedRun:
    """The same student, trained without a cache."""
    assert run.distillation is not None
    return replace(run, distillation=replace(run.distillation, cache=None))


@pytest.mark.parametrize(
    ("result", "keys"),
    [
        (SUMMARY, SUMMARY_KEYS),
        (TEACHER, [*FIGURES, *ORIGIN]),
        (STUDENT, [*FIGURES, "objective", "cache", "live", "together", *ORIGIN]),
        (without_cache(STUDENT), [*FIGURES, "objective", "cache", "live", "together", *ORIGIN]),
        (replace(TEACHER, unreadable_files=["a.jpg"]), [*FIGURES, "unreadable_files", *ORIGIN]),
        (CACHED, [*CACHED_KEYS, "processes", "versions"]),
        (
            replace(CACHED, unreadable_files=["a.jpg"], live=DIFFERENCES),
            [*CACHED_KEYS, "unreadable_files", "processes", "versions", *LIVE_KEYS],
        ),
        (VERIFIED, ["cache", "objects", "bytes", "seconds", "damaged"]),
        (
            replace(VERIFIED, rows_rendered=0, rows_recomputed=8, live=DIFFERENCES),
            ["cache", "objects", "bytes", "seconds", "damaged", "rows_rendered", "rows_recomputed", *LIVE_KEYS],
        ),
        (
            Exported(file="s", metadata={"architecture": "resnet8", "num_classes": "10"}, parameters=1, sha256="c"),
            ["file", "architecture", "num_classes", "parameters", "sha256"],
        ),
        (DemoRun(name="teacher", teacher_seconds_saved=None, run=TEACHER),
         ["name", "teacher_seconds_saved", *FIGURES, *ORIGIN]),
        (Swept(folder="o", table="o/results.csv", runs=2, finished=["a"], failed={"b": "why"}, seconds=1.0),
         ["folder", "table", "runs", "finished", "failed", "seconds"]),
    ],
)  # fmt: skip
def test_keys_stand_in_their_order(result: object, keys: list[str]) -> None:
    assert list(plain(result)) == keys


def test_what_is_nested_becomes_json_too() -> None:
    bounds = SignalBounds(error=0.25, tail_mass=None, kl_at_4=0.002, binary_kl_at_2=0.02, margin=0.5)
    tree = plain(
        Inspected(
            summary=SUMMARY,
            format=2,
            store="zarr",
            complete=True,
            complete_views=3,
            complete_signals=["logits"],
            blocks=6,
            blocks_done=6,
            rows_per_block=75,
            bytes=None,
            bounds={"logits": bounds},
            digests={},
            identity={"recipe": {"kind": "crop-flip"}},
            provenance={},
        )
    )
    assert list(tree)[: len(SUMMARY_KEYS) + 1] == [*SUMMARY_KEYS, "format"]
    assert tree["bytes"] is None
    assert tree["bounds"]["logits"]["tail_mass"] is None
    assert list(tree["bounds"]["logits"]) == ["error", "tail_mass", "kl_at_4", "binary_kl_at_2", "margin"]
    damaged = [DamagedObject(key="k", block=None, reason="gone")]
    assert plain(replace(VERIFIED, damaged=damaged))["damaged"] == [{"key": "k", "block": None, "reason": "gone"}]
    demo = Demo(
        runs=[DemoRun(name="kd", teacher_seconds_saved=1.5, run=STUDENT)],
        cache=replace(CACHED, complete=True, live=DIFFERENCES),
        picture="p.png",
        folder="o",
        seconds=2.0,
        reading=["a sentence"],
    )
    tree = json.loads(json.dumps(plain(demo)))
    assert list(tree) == ["runs", "cache", "picture", "folder", "seconds", "reading"]
    assert tree["runs"][0]["cache"]["samples"] == 150
    assert tree["cache"]["largest_difference_from_live"] == 0.02


def test_json_stays_what_it_is() -> None:
    tree = {"runs": {"a": TEACHER}, "failed": {}, "rows": [1, 2.5, None, True, "text", [{}]]}
    assert plain(tree) == {**tree, "runs": {"a": plain(TEACHER)}}
    assert plain((1, (2,))) == [1, [2]]


@pytest.mark.parametrize(
    "run", [TEACHER, STUDENT, without_cache(STUDENT), replace(STUDENT, unreadable_files=["a.jpg", "b.jpg"])]
)
def test_a_run_is_read_back_as_it_was(run: TrainedRun) -> None:
    tree = json.loads(json.dumps(plain(run)))
    again = TrainedRun.from_json(tree, "result.json")
    assert again == run
    assert json.dumps(plain(again)) == json.dumps(tree)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sha256": ...}, "missing: sha256"),
        ({"role": ...}, "missing: role"),
        ({"objective": ...}, "missing: objective"),
        ({"shape": 1}, "unknown: shape"),
        ({"role": "teacher"}, "unknown: objective, cache, live, together"),
        ({"cache": {"path": "c"}}, "missing: digest, teacher"),
        ({"cache": 3}, "not iterable"),
    ],
)
def test_what_is_no_result_is_refused(change: dict[str, Any], says: str) -> None:
    tree = {key: value for key, value in {**plain(STUDENT), **change}.items() if value is not ...}
    with pytest.raises(RunMismatch, match=r"r/result.json: expected the result .*; delete it and run again") as error:
        TrainedRun.from_json(tree, "r/result.json")
    assert says in str(error.value)


def test_results_need_no_torch() -> None:
    code = "import dhkd.pipeline.results, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
