"""A shared cache or run is the same as its original, in a folder that a hub takes, without anything of this machine."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from dhkd.configs.load import parse_codec
from dhkd.data.cache.blocks import WITNESS
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.errors import CacheDamaged, CacheIncomplete, ConfigError, RunMismatch
from dhkd.data.runs.config import settings_sha256
from dhkd.data.runs.read import read_runs
from dhkd.data.storage.sums import SUMS
from dhkd.pipeline.cache_tools import convert, inspect
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.evaluation import evaluate_network
from dhkd.pipeline.results import Shared
from dhkd.pipeline.share import private
from dhkd.pipeline.share.folder import ATTRIBUTES, CARD
from dhkd.pipeline.share.private import changed, public, public_text, require_public
from dhkd.pipeline.share.sharing import share
from dhkd.pipeline.training import train_student
from dhkd.stages.models import build_network
from dhkd.stages.models.weights import read_metadata, save_weights

from tests.caches import complete, manifest_of, writer_at
from tests.hubs import Hub, hub
from tests.pipeline.conftest import experiment_of
from tests.samples import files_of

HOME = "/home/somebody"
PROVENANCE = {
    "command": f"dhkd cache-teacher cifar100/resnet56-resnet20 --teacher '{HOME}/my runs/t.pth' --set a={HOME}/b",
    "teacher_test_top1": 70.94,
    "versions": {"torch": "2.11.0"},
    "code": {f"{HOME}/nets.py:Net": {"module": "nets", "sha256": "0" * 64}},
}


def written(place: Path, *, views: int = 2, seed: int = 0, provenance: Mapping[str, Any] = PROVENANCE) -> Path:
    """Write a small cache with this provenance of its logits."""
    manifest = manifest_of(37, 5, views, 20, seed=seed)
    manifest = manifest.model_copy(update={"provenance": {"logits": dict(provenance)}})
    writer = writer_at(place, manifest)
    for block in writer.plan.blocks():
        logits = np.random.default_rng((seed, block.view, block.number)).standard_normal((len(block), 5))
        writer.write(block, {"logits": logits, WITNESS: np.zeros(len(block), np.uint32)})
    complete(writer)
    return place


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A small cache, whose provenance names places of a machine."""
    return written(tmp_path / "c.zarr")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder that doesn't exist yet."""
    return tmp_path / "out"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run, whose files name places of a machine."""
    run = tmp_path / "run"
    run.mkdir()
    metadata = {"architecture": "resnet8", "num_classes": "5", "code": json.dumps({f"{HOME}/nets.py:Net": {"a": 1}})}
    save_weights(run / "student.safetensors", build_network("resnet8", 5), metadata)
    experiment = experiment_of("student.architecture=resnet8", "objective=kd", "seed=3").model_dump(mode="json")
    experiment["student"]["weights"] = f"{HOME}/begin.safetensors"
    config = {"run": {"command": "train-student", "cache": "d" * 64}, "experiment": experiment}
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    figures = {"last_top1": 50.0, "best_top1": 50.0, "last_top5": 90.0, "best_top5": 90.0}
    cache = {"path": f"{HOME}/caches/c.zarr", "digest": "d" * 64, "teacher": "resnet14", "teacher_sha256": None}
    cache |= {"views": 2, "samples": 9, "classes": 5, "signals": {"logits": "float16"}, "row_bytes": 20}
    result = {"role": "student", "architecture": "resnet8", "parameters": 1000, "epochs": 1, **figures, "seconds": 1.0}
    result |= {"samples_per_second": 9.0, "seed": 3, "objective": "kd", "cache": cache, "live": [], "together": 1}
    result |= {"sha256": "e" * 64, "settings_sha256": settings_sha256(config), "precision": "float32"}
    result |= {"hardware": "a processor", "processes": 1, "versions": {"torch": "2.11.0"}}
    (run / "result.json").write_text(json.dumps(result, indent=2))
    (run / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "top1": 50.0, "top5": 90.0}) + "\n")
    (run / "checkpoint").mkdir()
    (run / "checkpoint" / "state.pt").write_bytes(b"never shared")
    return run


def rows_of(reader: LogitReader) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """All logits of a cache, of all views."""
    return np.stack([reader.read_view(view) for view in range(reader.plan.num_views)])


def front_matter(out: Path) -> dict[str, Any]:
    """The YAML at the head of a card."""
    head = (out / CARD).read_text().split("---\n")
    assert head[0] == ""
    return dict(yaml.safe_load(head[1]))


def assert_sums_hold(out: Path) -> None:
    """The checksums are those of the folder's files, as another program computes them."""
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", SUMS], cwd=out, check=True)


def kept_by_lfs(out: Path, names: list[str]) -> list[str]:
    """Those of the files that git would keep in LFS, as git says."""
    subprocess.run(["git", "init", "--quiet", out], check=True)
    asked = ["git", "check-attr", "filter", "--", *names]
    lines = subprocess.run(asked, cwd=out, check=True, capture_output=True, text=True).stdout.splitlines()
    shutil.rmtree(out / ".git")
    return [line.partition(":")[0] for line in lines if line.endswith(": lfs")]


# caches


@pytest.mark.parametrize("store", [None, "webdataset"])
def test_a_shared_cache_is_the_same_cache(cache: Path, out: Path, store: str | None) -> None:
    result = share(cache, out, store=store)
    original, shared = open_cache(cache), open_cache(out)
    assert shared.store == (store or "zarr")
    assert np.array_equal(rows_of(shared), rows_of(original))
    assert shared.manifest.identity == original.manifest.identity
    assert all(isinstance(read, int) for read in shared.damages())
    blocks = [name for name in files_of(out) if "/c/" in name or name.endswith(".tar")]
    assert len(blocks) == 8
    assert kept_by_lfs(out, list(files_of(out))) == blocks
    assert (result.files, result.bytes) == (len(files_of(out)), sum(map(len, files_of(out).values())))
    assert_sums_hold(out)


def test_nothing_of_this_machine_is_in_a_shared_cache(cache: Path, out: Path) -> None:
    result = share(cache, out)
    assert all(b"somebody" not in content for content in files_of(out).values())
    recorded = open_cache(out).manifest.provenance["logits"]
    assert recorded["command"] == "dhkd cache-teacher cifar100/resnet56-resnet20 --teacher 't.pth' --set a=b"
    assert recorded["code"] == {"nets.py:Net": {"module": "nets", "sha256": "0" * 64}}
    assert recorded["teacher_test_top1"] == 70.94
    assert set(result.left_out) == {"provenance.logits.command", "provenance.logits.code"}


def test_the_card_of_a_cache(cache: Path, out: Path) -> None:
    share(cache, out, license="cc-by-4.0")
    head, text = front_matter(out), (out / CARD).read_text()
    assert (head["license"], head["size_categories"], head["viewer"]) == ("cc-by-4.0", ["n<1K"], False)
    assert {"dhkd", "knowledge-distillation"} <= set(head["tags"])
    assert "| its top-1 accuracy on `test` images | 70.94 % |" in text
    assert "dhkd train-student cifar100/resnet56-resnet20 --cache hf://datasets/USER/NAME" in text
    assert open_cache(cache).manifest.digest in text


def test_a_card_of_several_teachers_and_without_a_license(reader: LogitReader, out: Path) -> None:
    share(reader.location, out)
    text = (out / CARD).read_text()
    assert text.startswith("---\n# license: choose one of https://")
    assert "| teacher | `resnet8`, called `b` |" in text
    assert "| `b.logits` | 10 | float16 |" in text
    assert "| `embedding` |" in text


def test_a_card_quotes_strangers_without_their_markup(out: Path, tmp_path: Path) -> None:
    share(str(written(tmp_path / "c.zarr", provenance={"hardware": "| `x`\n<script>\x1b[31m"})), out)
    assert "| on | `¦ 'x'\\n<script>\\x1b[31m` |\n" in (out / CARD).read_text()


def test_given_again_it_changes_nothing(cache: Path, out: Path) -> None:
    first = share(cache, out)
    before, times = files_of(out), {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    assert share(cache, out) == first
    assert files_of(out) == before
    assert {file: file.stat().st_mtime_ns for file in times} == times


def test_a_half_written_folder_is_completed(cache: Path, out: Path) -> None:
    share(cache, out)
    before = files_of(out)
    for name in ("index.json", CARD, SUMS, "signals/logits/c/1/0/0"):
        (out / name).unlink()
    damaged = out / "signals" / "logits" / "c" / "0" / "1" / "0"
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    litter = out / "signals" / "logits" / "c" / "1" / "0" / "0.1234.partial"
    litter.write_bytes(b"left by a kill")
    share(cache, out)
    litter.unlink()
    assert files_of(out) == before


def test_a_card_that_was_edited_is_kept(cache: Path, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    share(cache, out)
    edited = (out / CARD).read_text().replace("# license", "license: mit # license")
    (out / CARD).write_text(edited)
    share(cache, out)
    assert (out / CARD).read_text() == edited
    assert "README.md: it was edited, and is kept" in caplog.text


def test_a_cache_that_grew_is_shared_again(cache: Path, out: Path) -> None:
    share(cache, out)
    written(cache, views=3)
    share(cache, out)
    assert open_cache(out).plan.num_views == 3
    assert "| views of each image | 3 |" in (out / CARD).read_text()
    assert_sums_hold(out)


def test_what_hubs_keep_in_a_folder_is_left_alone(cache: Path, out: Path) -> None:
    share(cache, out)
    (out / ".cache" / "huggingface").mkdir(parents=True)
    (out / ".cache" / "huggingface" / "state").write_text("x")
    share(cache, out)
    assert b"state" not in files_of(out)[SUMS]


def test_a_clone_of_a_new_repository_is_filled(cache: Path, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    subprocess.run(["git", "init", "--quiet", out], check=True)
    (out / ATTRIBUTES).write_text("*.bin filter=lfs\n")
    (out / CARD).write_text("---\nlicense: mit\n---\n")
    share(cache, out)
    assert open_cache(out).plan.num_views == 2
    assert "README.md: it was edited, and is kept" in caplog.text
    (out / CARD).unlink()
    share(cache, out, license="mit")
    assert front_matter(out)["license"] == "mit"
    assert_sums_hold(out)


def test_a_folder_of_something_else_is_refused_and_stays(cache: Path, out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(
        ConfigError, match=r"expected a new or empty folder, .* found thesis\.tex; choose another folder"
    ):
        share(cache, out)
    assert files_of(out) == {"thesis.tex": b"precious"}


def test_a_folder_of_another_cache_is_refused_and_stays(cache: Path, out: Path, tmp_path: Path) -> None:
    share(str(written(tmp_path / "other", seed=1)), out)
    before = files_of(out)
    for one, store in ((cache, None), (tmp_path / "other", "webdataset")):
        with pytest.raises(ConfigError, match="choose another folder"):
            share(one, out, store=store)
    private_copy = tmp_path / "copy"  # the same cache, not shared but copied, with all that its manifest says
    convert(str(cache), str(private_copy), store=None, codec=None, allow_loss=False)
    with pytest.raises(ConfigError, match="found another cache"):
        share(cache, private_copy)
    assert files_of(out) == before


def test_a_cache_that_is_not_as_it_should_be_is_refused(cache: Path, out: Path, tmp_path: Path) -> None:
    (cache / "signals" / "logits" / "c" / "1" / "0" / "0").write_bytes(b"x" * 204)
    with pytest.raises(CacheDamaged, match="its bytes are not those that were written"):
        share(cache, out)
    assert inspect(str(out)).complete is False
    assert not (out / CARD).exists()
    (cache / "index.json").unlink()
    with pytest.raises(CacheIncomplete, match="run 'dhkd cache-teacher' again"):
        share(cache, tmp_path / "new")
    with pytest.raises(ConfigError, match="expected a cache or a finished run, found neither"):
        share(str(tmp_path / "none"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_identity_that_names_a_place_is_refused(out: Path, tmp_path: Path) -> None:
    teacher = {"architecture": f"{HOME}/nets.py:Net", "sha256": "0" * 64}
    writer = writer_at(tmp_path / "c", manifest_of(10, 5, 1, 10, teacher=teacher))
    for block in writer.plan.blocks():
        writer.write(block, {"logits": np.zeros((10, 5)), WITNESS: np.zeros(10, np.uint32)})
    complete(writer)
    with pytest.raises(
        ConfigError, match=r"identity\.signals\.logits\.teacher\.architecture: expected nothing of this"
    ):
        share(str(tmp_path / "c"), out)
    assert not out.exists()


def test_a_secret_is_refused_without_being_shown(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "correct horse battery")
    for secret in ("correct horse battery", "hf_" + "x" * 34):
        place = written(tmp_path / secret[:3], provenance={"command": f"--set a={secret}"})
        with pytest.raises(ConfigError) as caught:
            share(place, out)
        assert secret not in str(caught.value)
        assert "expected nothing private to be shared" in str(caught.value)
    assert not out.exists()


def test_more_files_than_a_hub_takes(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    place = tmp_path / "i8"
    convert(str(cache), str(place), store=None, codec=parse_codec("int8", None, None), allow_loss=True)
    monkeypatch.setattr("dhkd.pipeline.share.folder.MOST_FILES", 10)
    monkeypatch.setattr("dhkd.pipeline.share.cache.MOST_FILES", 10)
    with pytest.raises(
        ConfigError, match="at most 10 files, as a hub takes, got 16; say --store webdataset, which needs 8"
    ):
        share(place, out)
    share(place, out, store="webdataset")
    monkeypatch.setattr("dhkd.pipeline.share.folder.MOST_ENTRIES", 1)
    with pytest.raises(ConfigError, match=r"at most 1 entries .* got .*; cache the teacher with larger blocks"):
        share(place, tmp_path / "new", store="webdataset")


# runs


def test_a_shared_run_is_a_run(run: Path, out: Path) -> None:
    result = share(run, out, license="mit")
    (shared,) = read_runs(out)
    assert (shared.state, shared.seed, shared.finished_result.last_top1) == ("finished", 3, 50.0)
    assert shared.settings["experiment.student.weights"] == "begin.safetensors"
    assert json.loads((out / "result.json").read_text())["cache"]["path"] == "c.zarr"
    assert read_metadata(out / "student.safetensors")["code"] == '{"nets.py:Net": {"a": 1}}'
    held = {CARD, ATTRIBUTES, SUMS, "config.yaml", "metrics.jsonl", "result.json", "student.safetensors"}
    assert set(files_of(out)) == held
    assert all(b"somebody" not in content for content in files_of(out).values())
    assert (front_matter(out)["license"], front_matter(out)["library_name"]) == ("mit", "dhkd")
    assert "dhkd predict student.safetensors photo.jpg" in (out / CARD).read_text()
    assert result.left_out == [
        "config.yaml.experiment.student.weights",
        "result.json.cache.path",
        "student.safetensors.code",
    ]
    assert_sums_hold(out)
    assert kept_by_lfs(out, sorted(held)) == ["student.safetensors"]
    before = files_of(out)
    assert share(run, out, license="mit") == result
    assert files_of(out) == before


def test_runs_that_can_not_be_shared(run: Path, cache: Path, out: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--store: expected none for a run"):
        share(run, out, store="zarr")
    share(cache, tmp_path / "shared")
    with pytest.raises(ConfigError, match="choose another folder"):
        share(run, tmp_path / "shared")
    other = shutil.copytree(run, tmp_path / "other")
    (other / "result.json").write_text((run / "result.json").read_text().replace("e" * 64, "f" * 64))
    share(other, tmp_path / "of-other")
    with pytest.raises(ConfigError, match="found another run; choose another folder"):
        share(run, tmp_path / "of-other")
    (run / "result.json").unlink()
    with pytest.raises(RunMismatch, match="expected a finished run, found none; finish it with --resume"):
        share(run, out)
    (run / "sweep.json").write_text("{}")
    with pytest.raises(
        RunMismatch, match="found a sweep's folder, which holds many; name a cache, or one run's folder"
    ):
        share(run, out)
    assert not out.exists()


# what is private


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/runs/teacher", "teacher"),
        ("/home/me/my runs/teacher.pth", "teacher.pth"),
        ("~/runs/a.yaml", "a.yaml"),
        ("dhkd x ~me/runs/a.yaml --set b=/c/d/e.txt,/f/g", "dhkd x a.yaml --set b=e.txt,g"),
        ("--teacher '/h i/j k.pth' --views 2", "--teacher 'j k.pth' --views 2"),
        ("/home/me/nets.py:Net", "nets.py:Net"),
        ("code of /home/me/nets.py:Net.", "code of nets.py:Net."),
        ("file:///home/me/a.tar", "a.tar"),
        (f"{HOME}/caches/c.zarr", "c.zarr"),
        ("--teacher gs://b/run --views 2", "--teacher run --views 2"),
        ("https://user:pass@host/a/b?sig=1", "https://…@host/a/b?…"),
        ("cifar100/resnet56-resnet20", "cifar100/resnet56-resnet20"),
        ("https://huggingface.co/datasets/u/c", "https://huggingface.co/datasets/u/c"),
        ("./runs/a ../b/c d/e", "./runs/a ../b/c d/e"),
        ("samples/s, 3 / 4, and/or, 1/255, /", "samples/s, 3 / 4, and/or, 1/255, /"),
        ("/", "/"),
    ],
)  # fmt: skip
def test_paths_are_shortened(text: str, expected: str) -> None:
    assert public_text(text) == expected
    assert public_text(expected) == expected
    assert public({text: [text, 1, None, True]}) == {expected: [expected, 1, None, True]}


def test_differences_are_listed() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "d": {"/x/y": 1}, "e": "f"}
    assert changed(before, {"a": {"b": 2, "c": [1, 3]}, "d": {"y": 1}, "e": "f"}) == ["a.b", "a.c", "d"]


def test_names_are_refused_unless_they_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "maria")
    monkeypatch.setenv("HOME", "/home/maria")
    assert private.getpass.getuser() == "maria"
    for text in ("runs/maria/x", "maria@host", "a /maria b"):
        with pytest.raises(
            ConfigError, match=r"f: expected nothing private .* your user name, maria; .* --allow-names"
        ):
            require_public("f", text, allow_names=False)
        require_public("f", text, allow_names=True)
    for text in ("maria-net", "mariadb/x", "the word maria"):
        require_public("f", text, allow_names=False)
    with pytest.raises(ConfigError, match="the path of your home folder"):
        require_public("f", "see /home/maria/x", allow_names=True)
    monkeypatch.setenv("LOGNAME", "root")
    require_public("f", "root/x", allow_names=False)


# from one end to the other


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that the environment names, and a user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    with hub(tmp_path / "hub") as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def test_from_a_cache_to_a_hub_to_a_student_to_a_hub(reader: LogitReader, served: Hub, tmp_path: Path) -> None:
    share(reader.location, served.root / "datasets" / "u" / "c")
    experiment, run = experiment_of("objective=kd", "student.architecture=resnet8"), tmp_path / "run"
    served.refuse, served.expired, served.broken = 2, 2, 2
    trained = train_student(
        experiment, "hf://datasets/u/c", run, data=DataOptions(), track=["none"], cpu=True, resume=False
    )
    near = train_student(
        experiment, reader.location, tmp_path / "near", data=DataOptions(), track=["none"], cpu=True, resume=False
    )
    assert trained.sha256 == near.sha256
    shared = share(run, served.root / "u" / "m")
    assert isinstance(shared, Shared)
    assert shared.kind == "run"
    again = share("hf://u/m", tmp_path / "again")
    assert again.digest == trained.sha256
    evaluated = evaluate_network(experiment, tmp_path / "again", "student", data=DataOptions(), cpu=True)
    assert evaluated.top1 == trained.last_top1
