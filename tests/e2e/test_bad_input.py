"""A user's mistakes: each is one line (what, expected, got, remedy) and an exit code, and nothing is lost."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from dhkd.data.cache.blocks import WITNESS
from dhkd.data.cache.reader import open_cache
from dhkd.data.recipes.crop_flip import CropFlip

from tests.caches import complete, writer_at
from tests.e2e.command_line import SMALL, SMALL_VERIFY, assert_one_line, dhkd, done
from tests.samples import files_of


@pytest.mark.parametrize(
    ("setting", "code", "says"),
    [
        ("views.seed=1", 1, ["recipe.seed expected 1, got 0", "cache-teacher"]),
        ("views.padding=2", 1, ["recipe.padding expected 2, got 1"]),
        ("data.limit=149", 1, ["dataset.num_samples expected 149, got 150", "dataset.fingerprint expected"]),
        ("teacher=resnet20", 1, ["teacher.architecture expected resnet20, got resnet8"]),
        ("teacher.sha256=" + "ab" * 32, 1, ["teacher.sha256 expected abababababab…, got"]),
        ("student=resnet9", 2, ["unknown network 'resnet9'", "did you mean 'resnet"]),
        ("objective=dhdk", 2, ["unknown objective 'dhdk'", "did you mean"]),
        ("objectives.dhdk.temperature=2", 2, ["unknown objective 'dhdk'", "did you mean"]),
        ("objectives.dhkd.temprature=2", 2, ["'temprature'", "did you mean 'temperature'"]),
        ("student.epoch=3", 2, ["unknown key 'epoch'", "did you mean 'epochs'"]),
        ("student.batch_size=1", 2, ["student.batch_size", "greater than or equal to 2, got 1"]),
        ("student.precision=fp16", 2, ["precision fp16: expected a GPU"]),
        ("student.compile=reduce-overhead", 2, ["compile reduce-overhead: expected a GPU"]),
        ("student.views=4", 2, ["student.views: expected at most 3", "got 4; cache more with"]),
        ("student.lr=fast", 2, ["student.lr", "got 'fast'"]),
        ("data=digit", 2, ["unknown data source 'digit'", "did you mean 'digits'"]),
        ("data.limit=1438", 2, ["data.limit: expected 1 to 1437", "got 1438"]),
        ("nonsense", 2, ["--set nonsense: expected key=value"]),
    ],
)
def test_a_student_refuses(setting: str, code: int, says: list[str], cache: Path, tmp_path: Path) -> None:
    words = ["--set", "student.epochs=1", "--cpu", "--cache", cache, "--out", tmp_path / "run"]
    small = [word for word in SMALL if word not in ("--precision", "float32", "--cpu")]
    assert_one_line(dhkd("train-student", "digits", *small, "--set", setting, *words), code, says)
    assert not (tmp_path / "run" / "config.yaml").exists(), "the folder stays free for the right command"


def test_compile_is_an_option_too(cache: Path, tmp_path: Path) -> None:
    outcome = dhkd(
        "train-student", "digits", *SMALL, "--compile", "reduce-overhead", "--cache", cache, "--out", tmp_path
    )
    assert_one_line(outcome, 2, ["compile reduce-overhead: expected a GPU"])


def test_the_nearest_preset_is_named(cache: Path, tmp_path: Path) -> None:
    outcome = dhkd("train-student", "digts", "--cache", cache, "--out", tmp_path / "run")
    assert_one_line(outcome, 2, ["unknown preset 'digts'", "did you mean 'digits'"])


def test_a_cache_of_another_data_set(cache: Path, tmp_path: Path) -> None:
    words = ["--set", "teacher=resnet8", "--set", "data.limit=150", "--cpu", "--cache", cache]
    outcome = dhkd("train-student", "demo", *words, "--out", tmp_path / "run")
    assert_one_line(
        outcome, 1, ["dataset.name expected glyphs, got digits", "dataset.num_classes expected 100, got 10"]
    )


def test_a_cache_of_another_teacher_is_refused(cache: Path, teacher: Path, other_teacher: Path, tmp_path: Path) -> None:
    words = ["train-student", "digits", *SMALL, "--cache", cache]
    outcome = dhkd(*words, "--teacher", other_teacher, "--out", tmp_path / "a")
    assert_one_line(outcome, 1, ["teacher.sha256 expected", "got"])
    done(*words, "--teacher", teacher, "--set", "student.epochs=1", "--out", tmp_path / "b")


@pytest.mark.parametrize("words", [["cache-teacher", "digits", *SMALL, "--teacher"], ["convert"]], ids=lambda w: w[0])
def test_an_unknown_store(words: list[str], cache: Path, teacher: Path, tmp_path: Path) -> None:
    source, out = (cache, [tmp_path / "c"]) if words == ["convert"] else (teacher, ["--out", tmp_path / "c"])
    outcome = dhkd(*words, source, *out, "--store", "zar")
    assert_one_line(outcome, 2, ["unknown store 'zar'", "valid are webdataset, zarr"])
    assert not (tmp_path / "c").exists()


def test_an_incomplete_or_missing_cache_is_refused(cache: Path, teacher: Path, tmp_path: Path) -> None:
    words = ["train-student", "digits", *SMALL, "--out", tmp_path / "run", "--cache"]
    assert_one_line(dhkd(*words, tmp_path / "nowhere"), 1, ["expected a dhkd cache, found none", "dhkd cache-teacher"])
    copy = shutil.copytree(cache, tmp_path / "c.zarr")
    (copy / "signals" / "logits" / "c" / "1" / "0" / "0").unlink()
    assert_one_line(dhkd(*words, copy), 1, ["5 of 6 blocks are there", "view 1, rows 0 to", "again"])
    facts = done("inspect", copy, "--json").result
    assert (facts["complete"], facts["blocks_done"]) == (False, 5)
    # The remedy in the message works.
    repaired = done("cache-teacher", "digits", *SMALL, "--teacher", teacher, "--out", copy, "--json").result
    assert repaired["blocks_written"] == 1
    assert files_of(copy) == files_of(cache)


def test_a_cache_is_not_continued_with_other_settings(cache: Path, teacher: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(cache, tmp_path / "c.zarr")
    words = ["cache-teacher", "digits", *SMALL, "--teacher", teacher, "--out", copy]
    for setting, says in {
        "views.seed=5": "recipe.seed expected 5, got 0",
        "cache.codec=float32": "signals.logits.codec.kind expected float32, got float16",
        "cache.views=2": "views expected at least 3, as it was begun with, got 2",
        "cache.store=webdataset": "store expected zarr, as it was begun with, got webdataset",
    }.items():
        assert_one_line(dhkd(*words, "--set", setting), 1, [says, "another --out"])
    assert files_of(copy) == files_of(cache)


@pytest.mark.parametrize(
    ("setting", "code", "says"),
    [
        ("cache.views=10", 2, ["cache.views: expected 1 to 9", "got 10"]),
        ("cache.views=some", 2, ["cache.views"]),
        ("teacher=resnet20", 1, ["another architecture", "check the architecture's name"]),
        ("cache.codec=int4", 2, ["cache.codec.kind", "'int8' or 'top-k'", "got 'int4'"]),
    ],
)
def test_caching_refuses(setting: str, code: int, says: list[str], teacher: Path, tmp_path: Path) -> None:
    words = ["cache-teacher", "digits", *SMALL, "--set", setting, "--teacher", teacher, "--out", tmp_path / "c.zarr"]
    assert_one_line(dhkd(*words), code, says)
    assert not (tmp_path / "c.zarr").exists()


def test_a_teacher_that_gives_nan_is_not_cached(teacher: Path, tmp_path: Path) -> None:
    """Finite weights whose logits overflow are detected when the logits are stored, not later in every student."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(teacher / "teacher.safetensors")
    tensors["fc.weight"] *= 1e6
    save_file(tensors, tmp_path / "loud.safetensors")
    words = [
        "cache-teacher",
        "digits",
        *SMALL,
        "--teacher",
        tmp_path / "loud.safetensors",
        "--out",
        tmp_path / "c.zarr",
    ]
    assert_one_line(dhkd(*words), 1, ["signal logits, view 0, index", "float16", "use cache.codec=float32"])
    assert not list((tmp_path / "c.zarr").rglob("logits/c/**/*"))


def test_weights_that_are_missing_or_unreadable(tmp_path: Path) -> None:
    words = ["cache-teacher", "digits", *SMALL, "--out", tmp_path / "c.zarr", "--teacher"]
    assert_one_line(dhkd(*words, tmp_path / "none.pth"), 1, ["expected a file, found none"])
    (tmp_path / "text.pth").write_text("weights")
    assert_one_line(dhkd(*words, tmp_path / "text.pth"), 1, ["text.pth"])
    (tmp_path / "empty").mkdir()
    assert_one_line(dhkd(*words, tmp_path / "empty"), 1, ["expected a finished run"])


def test_missing_data(tmp_path: Path) -> None:
    outcome = dhkd(
        "train-teacher", "cifar100/resnet56-resnet20", "--cpu", "--data-root", tmp_path, "--out", tmp_path / "r"
    )
    assert_one_line(outcome, 1, ["cifar-100-python/train", "--data-root DIR", "--download"])


def test_a_run_is_never_overwritten(cache: Path, tmp_path: Path) -> None:
    words = ["train-student", "digits", *SMALL, "--set", "student.epochs=1", "--cache", cache, "--out", tmp_path / "r"]
    first = done(*words, "--json").result
    before = files_of(tmp_path / "r")
    assert_one_line(dhkd(*words), 1, ["already holds a run", "--resume", "another --out"])
    outcome = dhkd(*words, "--resume", "--set", "student.lr=0.2")
    assert_one_line(outcome, 1, ["experiment.student.lr expected 0.1, got 0.2", "another --out"])
    again = done(*words, "--resume", "--json")
    assert again.result == first
    assert "already finished" in again.err
    assert files_of(tmp_path / "r") == before


def test_export_and_copy_never_overwrite(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_text("precious")
    assert_one_line(dhkd("export", teacher, "--out", tmp_path / "w.safetensors"), 2, ["expected a new file"])
    assert (tmp_path / "w.safetensors").read_text() == "precious"
    assert_one_line(dhkd("export", tmp_path, "--out", tmp_path / "new.safetensors"), 1, ["expected a finished run"])


def test_an_output_folder_that_cannot_be_made(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    words = ["train-student", "digits", *SMALL, "--cache", cache, "--out"]
    assert_one_line(dhkd(*words, tmp_path / "file"), 1, ["expected a folder, got a file"])
    assert_one_line(dhkd(*words, tmp_path / "file" / "run"), 1, ["file"])
    assert (tmp_path / "file").read_text() == "precious"


def test_wrong_usage_has_code_2(cache: Path) -> None:
    for words in (["train-student", "digits"], ["no-such-command"], ["evaluate", "digits"], ["inspect"]):
        outcome = dhkd(*words)
        assert outcome.code == 2, outcome.err
        assert "Usage" in outcome.err


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    outcome = dhkd("--debug", "inspect", tmp_path / "none")
    assert outcome.code == 1
    assert "Traceback" in outcome.err


def test_verify_tells_pixels_weights_and_logits_apart(
    cache: Path, teacher: Path, other_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--preset", "digits", *SMALL_VERIFY, "--rows", "150"]
    outcome = dhkd("verify", cache, *words, "--teacher", other_teacher)
    assert_one_line(outcome, 1, ["weights differ", "teacher.sha256 expected", "got"])

    # Logits of another network under this teacher's name: only a forward can detect them.
    reader, forged = open_cache(cache), tmp_path / "forged.zarr"
    writer = writer_at(forged, reader.manifest)
    for block in writer.missing():
        logits = reader.read(block.view, range(block.start, block.stop))
        logits[:, 0] += 0.5 * (block.view == 2)
        writer.write(block, {"logits": logits, WITNESS: reader.witness(block)})
    complete(writer)
    done("verify", forged, *words)
    outcome = dhkd("verify", forged, *words, "--teacher", teacher)
    assert_one_line(outcome, 1, ["logits beyond tolerance", "view 2, index", "expected at most", "got 0.5"])

    # A chunk with one flipped bit.
    damaged = shutil.copytree(cache, tmp_path / "damaged.zarr")
    chunk = damaged / "signals" / "logits" / "c" / "0" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[7] ^= 1
    chunk.write_bytes(content)
    outcome = dhkd("verify", damaged, *words, "--teacher", teacher)
    assert_one_line(outcome, 1, ["1 of 16 objects", "signals/logits/c/0/0/0", "view 0", "it rewrites only those"])

    # Other pixels, as from a changed library: the seeded fault swaps rows and columns of the crops.
    unchanged = CropFlip.decode

    def transposed(self: CropFlip, element_B: torch.Tensor) -> torch.Tensor:
        return unchanged(self, element_B)[:, [1, 0, 2]]

    monkeypatch.setattr(CropFlip, "decode", transposed)
    outcome = dhkd("verify", cache, *words)
    assert_one_line(outcome, 1, ["pixels differ", "view", "index", "crc32 expected"])
    training = dhkd("train-student", "digits", *SMALL, "--cache", cache, "--out", tmp_path / "run")
    assert_one_line(training, 1, ["pixels differ"])


def test_with_json_an_error_prints_no_result(cache: Path, tmp_path: Path) -> None:
    outcome = dhkd("inspect", tmp_path, "--json")
    assert (outcome.code, outcome.out) == (1, "")
    assert json.loads(done("inspect", cache, "--json").out)
