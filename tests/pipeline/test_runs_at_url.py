"""Runs and sweeps at a URL end with the same weights as in a folder, whatever happens on the way there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dhkd.data.errors import ConfigError, RunExists, RunMismatch, RunTaken, StorageError
from dhkd.data.patience import Patience
from dhkd.data.runs.names import RESULT
from dhkd.data.runs.object_lock import held_at
from dhkd.data.storage.bucket import Bucket
from dhkd.data.storage.places import PLACES
from dhkd.pipeline.claims import near_runs
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.results import Swept, TrainedRun
from dhkd.pipeline.sweep import sweep
from dhkd.pipeline.training import train_student

from tests.buckets import bucket, near_cache, proxied, s3_endpoint
from tests.few import few
from tests.pipeline.conftest import experiment_of
from tests.samples import files_of
from tests.servers import S3, Fault, Flaky

__all__ = ["bucket", "near_cache", "proxied", "s3_endpoint"]

EXPERIMENT = experiment_of("objective=ce", "student.epochs=2", "student.keep_every=1")
QUICK = Patience(retries=2, total_s=20, first_wait_s=0.01, longest_wait_s=0.02)


class Killed(BaseException):
    """Stands for the end of the process."""


def trained(out: str | Path, *, resume: bool = True) -> TrainedRun:
    with near_runs(out, resume=resume) as runs:
        near = runs[""]
        return train_student(
            *(EXPERIMENT, None, near.folder),
            data=DataOptions(),
            track=["none"],
            cpu=True,
            resume=resume,
            held={near.folder: near},
        )


@pytest.fixture(scope="module")
def in_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in a folder, trained without interruption."""
    out = tmp_path_factory.mktemp("runs") / "run"
    trained(out)
    return out


def files_at(url: str) -> dict[str, bytes]:
    storage = Bucket(url)
    return {key: storage.get(key) for key in sorted(storage.sizes())}


TIMES = ("seconds", "samples_per_second", "train_seconds")


def comparable(files: dict[str, bytes]) -> dict[str, object]:
    """A run's files as values, without times; those of a checkpoint, and so its bytes, depend on them."""
    values: dict[str, object] = {}
    for name, content in files.items():
        if name.endswith(".pt"):
            continue
        if name.endswith((".json", ".jsonl")):
            lines = [json.loads(line) for line in content.splitlines()] if name.endswith("l") else [json.loads(content)]
            values[name] = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
        else:
            values[name] = content
    return values


def test_a_run_at_a_url_is_that_in_a_folder(bucket: S3, in_folder: Path) -> None:
    url = f"{bucket.url}/runs/run"
    result = trained(url)
    at_url = files_at(url)
    assert comparable(at_url) == comparable(files_of(in_folder))
    assert at_url.keys() == files_of(in_folder).keys(), "without locks"
    assert trained(url) == result, "a finished run is not trained again"
    assert files_at(url) == at_url
    with pytest.raises(RunExists, match=f"output folder {url} already holds a run; continue it with --resume"):
        trained(url, resume=False)


def killing(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], None]:
    """Let the process end when it would put its next file of a run after `number` ones; the result lets it live."""
    put, left = Bucket.put, number

    def counted(self: Bucket, key: str, content: bytes, *, replace: bool) -> bool:
        nonlocal left
        if not key.startswith("lock."):
            if left == 0:
                raise Killed
            left -= 1
        return put(self, key, content, replace=replace)

    monkeypatch.setattr(Bucket, "put", counted)
    return lambda: monkeypatch.setattr(Bucket, "put", put)


# classes, settings; weights before the first epoch; metrics, weights and checkpoint of each epoch; weights, result
POINTS = (0, 1, 3, 4, 5, 8, 9, 10)


@pytest.mark.parametrize("point", few(POINTS, (3, 8)))
def test_a_run_killed_on_its_way_to_the_url_is_resumed_to_the_bit(
    point: int, bucket: S3, in_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"{bucket.url}/run"
    live = killing(monkeypatch, point)
    with pytest.raises(Killed):
        trained(url)
    live()
    assert len(files_at(url)) <= point
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    trained(url)
    assert comparable(files_at(url)) == comparable(files_of(in_folder))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores are not asked again for long."""
    monkeypatch.setitem(PLACES, "s3", lambda url: Bucket(url, QUICK))


def test_a_bucket_that_refuses_for_a_while_ends_nothing(
    bucket: S3, proxied: Flaky, in_folder: Path, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    url, put = f"{bucket.url}/run", "PUT /" + bucket.bucket + "/run/"

    def refusing(request: str) -> Fault | None:
        asked = proxied.count(f"{put}metrics.jsonl")  # longer than one call of `Bucket.put` asks
        return Fault("status", 503) if 0 < asked <= 12 and request.startswith(put) else None

    proxied.faults = refusing
    trained(url)
    assert "training goes on, and sends its files later" in caplog.text
    assert comparable(files_at(url)) == comparable(files_of(in_folder))


def test_what_could_not_be_sent_is_sent_when_the_run_goes_on(
    bucket: S3, proxied: Flaky, in_folder: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, put = f"{bucket.url}/run", f"PUT /{bucket.bucket}/run/"

    def refusing(request: str) -> Fault | None:
        if request.startswith(put) and proxied.count(f"{put}checkpoint/state.pt") > 1:
            return Fault("status", 503)
        return None

    proxied.faults = refusing
    with pytest.raises(StorageError, match=r"can't be reached .*; the run's files are in .*, and are sent when"):
        trained(url)
    assert RESULT not in files_at_through(url, bucket, monkeypatch)
    proxied.faults = lambda request: None
    monkeypatch.setattr("dhkd.stages.train.loop.TrainingStep.__call__", None)  # nothing is trained again
    trained(url)
    assert comparable(files_at(url)) == comparable(files_of(in_folder))


def files_at_through(url: str, bucket: S3, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Read what lies at the URL around the proxy."""
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", bucket.endpoint)
        return files_at(url)


def test_places_that_cannot_be_written_are_refused_before_training(
    bucket: S3, proxied: Flaky, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dhkd.stages.train.loop.train_together", None)
    proxied.faults = lambda request: Fault("status", 403) if request.startswith("PUT") else None
    with pytest.raises(StorageError, match=r"run/lock\.1: no access \(403 Forbidden\); check AWS_ACCESS_KEY_ID"):
        trained(f"{bucket.url}/run")
    with pytest.raises(ConfigError, match="a web server"):
        trained("https://127.0.0.1:1/run")


def test_a_run_that_another_process_trains_is_left_alone(bucket: S3) -> None:
    url = f"{bucket.url}/run"
    with held_at(Bucket(url)), pytest.raises(RunTaken, match=f"run at {url}: expected nobody to train there, got"):
        trained(url)
    assert files_at(url) == {}


def test_errors_of_a_run_name_its_url(
    bucket: S3, in_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"{bucket.url}/run"
    live = killing(monkeypatch, 8)
    with pytest.raises(Killed):
        trained(url)
    live()
    Bucket(url).put("checkpoint/state.pt", b"damaged", replace=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    with pytest.raises(RunMismatch, match=f"checkpoint {url}/checkpoint/state.pt can't be read .*; delete it to train"):
        trained(url)
    Bucket(url).delete("checkpoint/state.pt")
    trained(url)
    assert comparable(files_at(url)) == comparable(files_of(in_folder))


# sweeps

SEEDS = {f"seed={seed}": experiment_of("objective=ce", f"seed={seed}") for seed in range(2)}


def swept(out: str | Path, experiments: dict[str, Any], **options: Any) -> Swept:
    return sweep(experiments, None, out, command="sweep", data=DataOptions(), track=["none"], cpu=True, **options)


def test_a_sweep_at_a_url_is_that_in_a_folder(
    bucket: S3, proxied: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{bucket.url}/sweep"
    in_folder, at_url = swept(tmp_path / "sweep", SEEDS, together=2), swept(url, SEEDS)
    assert (at_url.finished, at_url.failed, at_url.table) == (in_folder.finished, {}, f"{url}/results.csv")

    def by_run(files: dict[str, bytes]) -> dict[str, object]:
        values = comparable({name: content for name, content in files.items() if name != "results.csv"})
        for name in values:
            if name.endswith(RESULT):
                values[name][0].pop("together", None)  # type: ignore[index]
        return values

    assert by_run(files_at(url)) == by_run(files_of(tmp_path / "sweep"))
    proxied.requests.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    again = swept(url, SEEDS)
    assert again.finished == at_url.finished
    written = [request for request in proxied.requests if not request.startswith("GET")]
    assert written == [f"PUT /{bucket.bucket}/sweep/results.csv"], "finished runs are not touched"


def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let each run fail after its first epoch; the result lets it go on."""
    evaluate = "dhkd.pipeline.evaluation.Evaluator.__call__"

    def broken(self: object, network: torch.nn.Module) -> None:
        raise RuntimeError("out of memory")

    patch = pytest.MonkeyPatch()
    patch.setattr(evaluate, broken)
    return patch.undo


def test_a_failed_run_is_kept_apart_until_it_is_wanted_again(bucket: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    url, one = f"{bucket.url}/sweep", dict(list(SEEDS.items())[:1])
    mend = failing(monkeypatch)
    try:
        failed = swept(url, one).failed
    finally:
        mend()
    assert failed == {"seed=0": "RuntimeError: out of memory"}
    assert files_at(url)["seed=0/failed.txt"].startswith(b"RuntimeError: out of memory\n\nTraceback")
    assert swept(url, one).failed == failed, "it is skipped"
    assert swept(url, one, again=True).finished == ["seed=0"]
    assert "seed=0/failed.txt" not in files_at(url)


def test_workers_share_a_sweep_at_a_url(bucket: S3) -> None:
    url = f"{bucket.url}/sweep"
    with held_at(Bucket(f"{url}/seed=0")):
        assert swept(url, SEEDS).finished == ["seed=1"]
    assert swept(url, SEEDS).finished == ["seed=0", "seed=1"]
