"""Both stages on photographs: folder and shards, any number of workers and processes, every schedule, damaged files."""

import json
import os
import shutil
import signal
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import webdataset
from dhkd.data.sources import load_source
from dhkd.data.sources.base import Place
from PIL import Image

from tests.e2e.command_line import Outcome, dhkd, done, in_processes, spawn
from tests.few import few
from tests.samples import files_of

PRESET = """
description: photographs
data: {source: image-folder}
views: {kind: random-resized-crop, size: 24, flip: true, seed: 3}
teacher: {architecture: resnet8, epochs: 1, batch_size: 16, lr: 0.05}
cache: {views: 4, codec: float32, block_mb: 0.002, batch_size: 16, views_at_once: 3}
student: {architecture: resnet8, epochs: 1, batch_size: 16, lr: 0.05, view_schedule: block, window: 30}
objective: dhkd
"""
NUM_CLASSES = 10
SCHEDULES = {
    "cycle": ["--set", "student.view_schedule=cycle"],
    "block": ["--set", "student.view_schedule=block"],
    "independent": ["--set", "student.view_schedule=independent"],
    "cycle, all shuffled": ["--set", "student.view_schedule=cycle", "--set", "student.window=null"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's layout in small: 80 training and 20 test photographs of 10 classes, of several sizes and modes."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(100):
        split = "train" if number < 80 else "val"
        file = root / split / f"n{number % NUM_CLASSES:08d}" / f"image_{number}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(30, 70, 2)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height))
        (coarse.convert("L") if number % 9 == 0 else coarse).save(file, "JPEG")
    return root


@pytest.fixture(scope="module")
def preset(root: Path) -> Path:
    path = root / "photographs.yaml"
    path.write_text(PRESET)
    return path


def write_shards(root: Path, pattern: str, split: str, folder: str) -> None:
    """The split packed in the order of its keys, 30 samples to a shard."""
    images = load_source("image-folder", split, Place(root=str(root)))
    (root / folder).mkdir()
    with webdataset.ShardWriter(str(root / folder / pattern), maxcount=30, verbose=0) as shards:
        for index, label in enumerate(images.labels_N.tolist()):
            shards.write({"__key__": f"{index:06d}", "jpg": images.files.read(index), "cls": label})


@pytest.fixture(scope="module")
def sources(root: Path) -> dict[str, list[str]]:
    """What each source takes on the command line."""
    write_shards(root, "%06d.tar", "train", "train-shards")
    write_shards(root, "%06d.tar", "test", "val-shards")
    data = "{source: webdataset, train: 'train-shards/{000000..000002}.tar', test: val-shards/*.tar, num_classes: 10}"
    where = ["--data-root", str(root), "--cpu"]
    return {"folder": where, "shards": [*where, "--set", f"data={data}"]}


@pytest.fixture(scope="module")
def teacher(root: Path, preset: Path, sources: dict[str, list[str]]) -> Path:
    done("train-teacher", preset, *sources["folder"], "--workers", "0", "--out", root / "teacher")
    return root / "teacher"


@pytest.fixture(scope="module")
def caches(root: Path, preset: Path, sources: dict[str, list[str]], teacher: Path) -> dict[str, Path]:
    """A cache from each source."""
    paths = {}
    for name, words in sources.items():
        paths[name] = root / f"{name}.zarr"
        done("cache-teacher", preset, *words, "--workers", "0", "--teacher", teacher, "--out", paths[name])
    return paths


def chunks_of(cache: Path) -> dict[str, bytes]:
    """What is stored of blocks; a kill may leave a file beside them that was not finished."""
    files = files_of(cache).items()
    return {name: content for name, content in files if "/c/" in name and not name.endswith(".partial")}


def test_folder_and_shards_give_the_same_pixels_and_logits(caches: dict[str, Path]) -> None:
    assert len(chunks_of(caches["folder"])) == 2 * 4 * 2, "signals and witnesses of four views in two blocks each"
    assert chunks_of(caches["folder"]) == chunks_of(caches["shards"])


@pytest.mark.parametrize(
    ("source", "workers"), few(product(["folder", "shards"], [1, 2]), [("folder", 2), ("shards", 1)])
)
def test_workers_leave_no_trace_in_a_cache(
    source: str,
    workers: int,
    preset: Path,
    sources: dict[str, list[str]],
    teacher: Path,
    caches: dict[str, Path],
    tmp_path: Path,
) -> None:
    words = [preset, *sources[source], "--workers", workers, "--teacher", teacher, "--out", tmp_path / "c.zarr"]
    done("cache-teacher", *words)
    assert chunks_of(tmp_path / "c.zarr") == chunks_of(caches[source])


@pytest.mark.soak  # in CI with images in memory, in test_processes.py
def test_processes_leave_no_trace_in_a_cache(
    preset: Path, sources: dict[str, list[str]], teacher: Path, caches: dict[str, Path], tmp_path: Path
) -> None:
    words = [*sources["shards"], "--workers", "1", "--teacher", teacher, "--out", tmp_path / "c.zarr", "--json"]
    outcome = in_processes(2, "cache-teacher", preset, *words)
    assert outcome.code == 0, outcome.err
    assert outcome.result["processes"] == 2
    assert chunks_of(tmp_path / "c.zarr") == chunks_of(caches["shards"])


@pytest.mark.parametrize("schedule", few(SCHEDULES, ["independent", "cycle, all shuffled"]))
def test_a_student_is_the_same_from_either_source_and_any_workers(
    schedule: str, preset: Path, sources: dict[str, list[str]], caches: dict[str, Path], tmp_path: Path
) -> None:
    def student(source: str, workers: int) -> str:
        out = tmp_path / f"{source}-{workers}"
        words = [*sources[source], *SCHEDULES[schedule], "--workers", workers, "--cache", caches[source]]
        result = done("train-student", preset, *words, "--out", out, "--json").result
        assert np.isfinite(json.loads((out / "metrics.jsonl").read_text())["loss"])
        return str(result["sha256"])

    one = student("folder", 0)
    assert student("shards", 0) == one
    assert student("folder", 2) == one


@pytest.mark.soak  # in CI with images in memory, in test_processes.py
def test_two_processes_take_one_processs_steps(
    preset: Path, sources: dict[str, list[str]], caches: dict[str, Path], tmp_path: Path
) -> None:
    words = [*sources["folder"], "--set", "objective=kd", "--cache", caches["folder"], "--workers", "1", "--json"]
    alone = done("train-student", preset, *words, "--out", tmp_path / "alone").result
    outcome = in_processes(2, "train-student", preset, *words, "--out", tmp_path / "two")
    assert outcome.code == 0, outcome.err
    losses = [json.loads((tmp_path / run / "metrics.jsonl").read_text())["loss"] for run in ("alone", "two")]
    # Batch norm sees half a batch in each of two processes, so that the losses are alike and not equal.
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert outcome.result["samples_per_second"] > 0 < alone["samples_per_second"]


def test_verify_recomputes_from_either_source(
    preset: Path, sources: dict[str, list[str]], teacher: Path, caches: dict[str, Path]
) -> None:
    for source, words in sources.items():
        result = done("verify", caches[source], "--preset", preset, *words, "--teacher", teacher, "--json").result
        assert result["rows_recomputed"] == 256
        assert result["largest_difference_from_live"] < 1e-4


def test_a_cache_of_one_source_is_refused_for_the_other(
    preset: Path, sources: dict[str, list[str]], caches: dict[str, Path], tmp_path: Path
) -> None:
    words = [preset, *sources["shards"], "--cache", caches["folder"], "--out", tmp_path / "run"]
    require_one_line(dhkd("train-student", *words), "dataset.name expected webdataset, got image-folder")


@pytest.fixture
def damaged(root: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the data with one photograph cut off, and that photograph."""
    copy = tmp_path / "damaged"
    for split in ("train", "val"):
        shutil.copytree(root / split, copy / split)
    victim = copy / "train" / "n00000003" / "image_13.JPEG"
    victim.write_bytes(victim.read_bytes()[:300])
    return copy, victim


@pytest.mark.soak  # the same on small generated photographs is in the other tests of this file
def test_real_photographs_go_through_both_stages(photographs: Path, tmp_path: Path) -> None:
    """imagenet-sample: four views, folder and shards, 0 to 2 workers, 1 and 2 processes, every schedule."""
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(photographs)
    write_shards(tmp_path, "%06d.tar", "train", "train-shards")
    data = "{source: webdataset, train: train-shards/*.tar, test: train-shards/000000.tar, num_classes: 250}"
    preset = tmp_path / "sample.yaml"
    preset.write_text(PRESET.replace("block_mb: 0.002", "block_mb: 0.05").replace("size: 24", "size: 48"))
    words = [preset, "--data-root", tmp_path, "--cpu", "--set", "data.test_limit=30"]
    sources = {"folder": words, "shards": [*words, "--set", f"data={data}"]}
    teacher = tmp_path / "teacher"
    done("train-teacher", *words, "--out", teacher)

    caches = {}
    for source, workers, processes in (("folder", 0, 1), ("folder", 1, 1), ("shards", 2, 1), ("shards", 1, 2)):
        out = tmp_path / f"{source}-{workers}-{processes}.zarr"
        command = ["cache-teacher", *sources[source], "--teacher", teacher, "--workers", workers, "--out", out]
        outcome = done(*command) if processes == 1 else in_processes(processes, *command)
        assert outcome.code == 0, outcome.err
        caches[source, workers, processes] = out
    one, *others = (chunks_of(cache) for cache in caches.values())
    assert len(one) == 2 * 4 * 5
    assert all(other == one for other in others)

    for schedule in ("cycle", "block", "independent"):
        students = {
            source: done(
                "train-student", *sources[source], *SCHEDULES[schedule], "--workers", workers,
                "--cache", caches[source, workers, 1], "--out", tmp_path / f"{source}-{schedule}", "--json",
            ).result
            for source, workers in (("folder", 0), ("shards", 2))
        }  # fmt: skip
        assert students["folder"]["sha256"] == students["shards"]["sha256"]


def require_one_line(outcome: Outcome, *parts: str) -> None:
    assert outcome.code == 1, outcome.err
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error")]
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in line


@pytest.mark.parametrize("workers", few([0, 2], [2]))
def test_a_damaged_photograph_stops_either_stage_unless_it_is_allowed(
    workers: int, preset: Path, damaged: tuple[Path, Path], teacher: Path, tmp_path: Path
) -> None:
    root, victim = damaged
    words = [preset, "--data-root", root, "--cpu", "--workers", workers]
    cache, run = tmp_path / "c.zarr", tmp_path / "run"
    stopped = dhkd("cache-teacher", *words, "--teacher", teacher, "--out", cache)
    require_one_line(stopped, str(victim), "expected an image, got: a damaged image", "--allow-bad N")

    words += ["--allow-bad", "1", "--json"]
    written = done("cache-teacher", *words, "--teacher", teacher, "--out", cache)
    assert written.result["unreadable_files"] == [str(victim)]
    assert str(victim) in written.err
    assert written.result["rows_written"] == 4 * 80, "the cache stays aligned by key"
    trained = done("train-student", *words, "--cache", cache, "--out", run)
    assert trained.result["unreadable_files"] == [str(victim)]
    require_one_line(
        dhkd("train-student", *words, "--allow-bad", "0", "--cache", cache, "--out", tmp_path / "strict"), str(victim)
    )


def test_pixels_that_drifted_are_refused_and_can_be_accepted(
    preset: Path, root: Path, caches: dict[str, Path], tmp_path: Path
) -> None:
    for split in ("train", "val"):
        shutil.copytree(root / split, tmp_path / split)
    for file in (tmp_path / "train").rglob("*.JPEG"):
        with Image.open(file) as photo:
            photo.load()
        photo.save(file, "JPEG", quality=60)
    words = [preset, "--data-root", tmp_path, "--cpu", "--workers", "0", "--cache", caches["folder"]]
    refused = dhkd("train-student", *words, "--out", tmp_path / "run")
    require_one_line(refused, "pixels differ from those that the teacher saw", "versions", "--allow-drift")
    accepted = done("train-student", *words, "--allow-drift", "--out", tmp_path / "run")
    assert "pixels differ" in accepted.err


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
def test_caching_goes_on_after_an_end_in_the_middle(
    how: signal.Signals,
    preset: Path,
    sources: dict[str, list[str]],
    teacher: Path,
    caches: dict[str, Path],
    tmp_path: Path,
) -> None:
    out = tmp_path / "c.zarr"
    words = ["cache-teacher", preset, *sources["folder"], "--workers", "2", "--teacher", teacher, "--out", out]
    # Small blocks, so that there are many moments between the first and the last.
    words += ["--set", "cache.block_mb=0.0002", "--set", "cache.batch_size=4"]
    process = spawn(*words, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((out / "witness").rglob("c/*/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(how)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    if how == signal.SIGINT:
        assert "Traceback" not in err
        assert "error: interrupted" in err
    workers = [pid for pid in os.listdir("/proc") if pid.isdigit() and session_of(pid) == process.pid]
    deadline = time.monotonic() + 120
    while workers and time.monotonic() < deadline:
        time.sleep(0.1)
        workers = [pid for pid in workers if session_of(pid) == process.pid]
    assert not workers, "workers end with the process that they decode for"
    again = done(*words, "--json")
    assert again.result["blocks_written"] > 0
    whole = tmp_path / "whole.zarr"
    done(*[whole if word == out else word for word in words], "--workers", "0")
    assert chunks_of(out) == chunks_of(whole)


def session_of(pid: str) -> int:
    """The session that a living process belongs to, -1 where there is none."""
    try:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return -1
        return os.getsid(int(pid))
    except (OSError, ValueError):
        return -1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "cache.views=all"], "cache.views: random-resized-crop has unlimited views; set a number"),
        (["--set", "views.padding=4"], "views of kind random-resized-crop: unknown option 'padding'"),
        (["--set", "data.train=training"], "expected a folder of class folders at"),
        (["--set", "data.num_classes=3"], "data.num_classes: image-folder counts its class folders"),
        (["--set", "data={source: webdataset, num_classes: 10}"], "expected tar files, found none"),
        (["--set", "data={source: webdataset}"], "data.num_classes: shards don't say how many classes there are"),
        (["--teacher", "packaged"], "network resnet8"),
        (["--set", "views.kind=crop-flip"], "views of kind crop-flip: unknown option 'size'"),
        (["--set", "views={kind: crop-flip, padding: 2, flip: true}"], "pixels, as the first image has, got"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], message: str, preset: Path, root: Path, teacher: Path) -> None:
    common = [preset, "--data-root", root, "--cpu", "--workers", "0", "--teacher", teacher, "--out", root / "never"]
    outcome = dhkd("cache-teacher", *common, *words)
    assert outcome.code in (1, 2), outcome.err
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error")]
    assert message in line
    assert not (root / "never").exists()


def test_the_data_root_is_asked_for(preset: Path, teacher: Path, tmp_path: Path) -> None:
    outcome = dhkd("cache-teacher", preset, "--cpu", "--teacher", teacher, "--out", tmp_path / "c.zarr")
    assert outcome.code == 2
    *_, last = outcome.err.splitlines()
    assert last == "error: image-folder: expected the place of its files; name it with --data-root"
