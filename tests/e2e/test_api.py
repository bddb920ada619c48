"""The cache in your own training loop: every item equals what `train-student` gives its student."""

import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from dhkd.configs.load import load_experiment
from dhkd.data.errors import CacheDamaged, CacheIncomplete, CacheMismatch, ConfigError, DataError
from dhkd.data.recipes.crop_flip import CropFlip
from dhkd.data.stream.batches import Stream
from dhkd.pipeline.api import DataOptions, DistillationSet, open_cache
from dhkd.pipeline.build.cache import cached_names, reader_of, signals_of
from dhkd.pipeline.build.data import images_of, normalization_of, recipe_of, renderer_of
from torch.utils.data import DataLoader, DistributedSampler

from tests import servers
from tests.e2e.command_line import done
from tests.samples import encoded, make_photo

ROOT = Path(__file__).parents[2]
HERE = ["data.limit=150", "teacher=resnet8"]  # what SMALL says of data and teacher

PHOTOGRAPHS = """
description: photographs
data: {source: image-folder}
views: {kind: random-resized-crop, size: 24, flip: true, seed: 3}
teacher: {architecture: resnet8, epochs: 1, batch_size: 16, lr: 0.05}
cache: {views: 3, block_mb: 0.001, batch_size: 16}
student: {architecture: resnet8, epochs: 1, batch_size: 16, lr: 0.05}
"""


def stream_of(preset: str | Path, cache: Path | str, overrides: Sequence[str], data: DataOptions) -> Stream:
    """The stream on which `train-student` trains, in batches of 37."""
    experiment, cpu = load_experiment(str(preset), overrides), torch.device("cpu")
    images, recipe = images_of(experiment, "train", data), recipe_of(experiment.views)
    reader, settings = reader_of(str(cache), data), experiment.student
    names, _ = cached_names({"logits": None}, reader, settings.teacher, "")
    return Stream(
        renderer_of(images, recipe, cpu, data),
        normalization_of(settings, images),
        signals_of(names, reader, settings, cpu, 1),
        schedule=settings.view_schedule,
        seed=experiment.seed,
        batch_size=37,
        block_rows=reader.plan.block_rows,
    )


def assert_items_of(samples: DistillationSet, stream: Stream, epochs: Sequence[int]) -> None:
    """Every batch of the stream is equal to the set's items, to the bit; so is its first row by itself."""
    for epoch in epochs:
        samples.set_epoch(epoch)
        for batch in stream.epoch(epoch):
            items = samples.__getitems__(batch.index_B.tolist())
            images, labels, logits = zip(*items, strict=True)
            assert torch.equal(torch.stack(images), batch.images_BCHW)
            assert list(labels) == batch.labels.first_B.tolist()
            assert torch.equal(torch.stack(logits), batch.teacher["logits"])
            image, label, values = samples[int(batch.index_B[0])]
            assert image.dtype == values.dtype == torch.float32
            assert isinstance(label, int)
            assert torch.equal(image, images[0])
            assert torch.equal(values, logits[0])


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, DataOptions]:
    """A preset, a cache and where the files are: 45 photographs of 3 classes."""
    root = tmp_path_factory.mktemp("photographs")
    for number in range(54):
        file = root / ("train" if number < 45 else "val") / f"class{number % 3}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(make_photo(number)))
    preset, cache = root / "photographs.yaml", root / "c.zarr"
    preset.write_text(PHOTOGRAPHS)
    words = ["--data-root", root, "--cpu", "--workers", "0"]
    done("train-teacher", preset, *words, "--out", root / "teacher")
    done("cache-teacher", preset, *words, "--teacher", root / "teacher", "--out", cache)
    return preset, cache, DataOptions(str(root), workers=0)


@pytest.mark.parametrize("schedule", ["independent", "cycle", "block"])
def test_items_are_what_a_student_gets(schedule: str, cache: Path) -> None:
    overrides = [*HERE, f"student.view_schedule={schedule}", "seed=5"]
    samples = DistillationSet("digits", cache, overrides=overrides)
    assert (len(samples), samples.num_classes) == (150, 10)
    assert_items_of(samples, stream_of("digits", cache, overrides, DataOptions()), [0, 1, 2, 3, 7, 2])


def test_a_window_is_ignored(cache: Path) -> None:
    """`student.window` concerns the stream's order; loaders have their own."""
    overrides = [*HERE, "student.view_schedule=block"]
    samples = DistillationSet("digits", cache, overrides=[*overrides, "student.window=40"])
    assert_items_of(samples, stream_of("digits", cache, overrides, DataOptions()), [0, 1])


@pytest.mark.parametrize("schedule", ["independent", "cycle"])
def test_photographs_are_what_a_student_gets(
    schedule: str, photographs: tuple[Path, Path, DataOptions], no_workers_of_the_last_test: None
) -> None:
    preset, cache, data = photographs
    overrides = [f"student.view_schedule={schedule}"]
    samples = DistillationSet(preset, cache, overrides=overrides, data=data)
    assert_items_of(samples, stream_of(preset, cache, overrides, data), [0, 1, 4])
    for workers in (0, 2):
        assert_loaded(samples, workers, epochs=[0, 1])


def assert_loaded(samples: DistillationSet, workers: int, epochs: Sequence[int], **options: object) -> None:
    """A plain loader gives each sample once, and the same as the set itself."""
    loader = DataLoader(samples, batch_size=16, shuffle=True, num_workers=workers, **options)
    for epoch in epochs:
        samples.set_epoch(epoch)
        images, labels, logits = (torch.cat(parts) for parts in zip(*loader, strict=True))
        expected = samples.__getitems__(range(len(samples)))
        # A shuffled item is recognised by its logits, which differ for all samples.
        order = [int((logits == item[2]).all(dim=1).nonzero()) for item in expected]
        assert sorted(order) == list(range(len(samples)))
        assert torch.equal(images[order], torch.stack([item[0] for item in expected]))
        assert labels[order].tolist() == [item[1] for item in expected]
        assert labels.dtype == torch.int64


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("schedule", ["independent", "cycle"])
def test_a_plain_loader(schedule: str, workers: int, cache: Path, no_workers_of_the_last_test: None) -> None:
    samples = DistillationSet("digits", cache, overrides=[*HERE, f"student.view_schedule={schedule}"])
    assert_loaded(samples, workers, epochs=[0, 1, 2])


def test_workers_that_outlive_an_epoch(cache: Path, no_workers_of_the_last_test: None) -> None:
    """They show the new epoch's views or raise an error, but never show the old ones."""
    samples = DistillationSet("digits", cache, overrides=HERE)
    assert_loaded(samples, 2, epochs=[0, 1, 2], persistent_workers=True)
    samples = DistillationSet("digits", cache, overrides=[*HERE, "student.view_schedule=cycle"])
    with pytest.raises(ConfigError, match=r"epoch 1 needs another view .* persistent_workers=False"):
        assert_loaded(samples, 2, epochs=[0, 1], persistent_workers=True)


def test_shares_of_a_distributed_run(cache: Path) -> None:
    """Each process has its own set; together they see the same samples as one process."""
    seen = []
    for rank in range(2):
        samples = DistillationSet("digits", cache, overrides=HERE)
        sampler = DistributedSampler(samples, num_replicas=2, rank=rank, shuffle=True)
        for epoch in (0, 1):
            samples.set_epoch(epoch)
            sampler.set_epoch(epoch)
        seen += [
            row.numpy().tobytes() for _, _, rows in DataLoader(samples, batch_size=15, sampler=sampler) for row in rows
        ]
    alone = [logits.numpy().tobytes() for _, _, logits in samples.__getitems__(range(150))]
    assert sorted(seen) == sorted(alone)


def test_one_call_renders_and_gathers_a_whole_batch(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This makes a plain loader fast."""
    samples = DistillationSet("digits", cache, overrides=HERE)
    calls: list[tuple[str, int]] = []
    for owner, name in ((samples._renderer, "pixels"), (samples._signals, "gather")):
        real = getattr(owner, name)
        monkeypatch.setattr(
            owner,
            name,
            lambda view_B, index_B, n=name, f=real: (calls.append((n, len(index_B))), f(view_B, index_B))[1],
        )
    assert len(list(DataLoader(samples, batch_size=75, shuffle=True))) == 2
    assert calls == [("pixels", 75), ("gather", 75)] * 2


def test_a_cache_at_a_url(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are forked after the server was read, and don't read it again."""
    pytest.importorskip("obstore", reason="caches by URL need obstore")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    overrides = [*HERE, "student.view_schedule=cycle"]
    with servers.web(cache.parent) as web:
        samples = DistillationSet("digits", f"{web.url}/{cache.name}", overrides=overrides)
        assert_loaded(samples, 2, epochs=[0, 1, 2, 0, 1])
        assert_items_of(samples, stream_of("digits", cache, overrides, DataOptions()), [2, 3])
        chunks = {
            request: n for request, n in web.requests.items() if request.startswith("GET") and "/signals/" in request
        }
        assert len(chunks) == 6
        assert set(chunks.values()) == {1}, "each is fetched once"


def test_refusals(cache: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CacheMismatch, match=r"dataset\.num_samples expected 149, got 150"):
        DistillationSet("digits", cache, overrides=["data.limit=149", "teacher=resnet8"])
    with pytest.raises(CacheMismatch, match=r"teacher\.architecture expected resnet14, got resnet8"):
        DistillationSet("digits", cache, overrides=["data.limit=150"])
    with pytest.raises(CacheMismatch, match=r"the signal b\.logits, it holds logits"):
        DistillationSet("digits", cache, overrides=[*HERE, "student.teacher=b"])
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        DistillationSet("digts", cache)
    with pytest.raises(CacheIncomplete, match="found none"):
        DistillationSet("digits", tmp_path / "none", overrides=HERE)

    copy = shutil.copytree(cache, tmp_path / "copy.zarr")
    chunk = copy / "signals" / "logits" / "c" / "1" / "0" / "0"
    chunk.write_bytes(bytes(chunk.stat().st_size))
    with pytest.raises(CacheDamaged, match="view 1, rows 0 to"):
        DistillationSet("digits", copy, overrides=HERE)
    chunk.unlink()
    with pytest.raises(CacheIncomplete, match="5 of 6 blocks are there"):
        DistillationSet("digits", copy, overrides=HERE)

    samples = DistillationSet("digits", cache, overrides=HERE)
    for index in (-1, 150):
        with pytest.raises(IndexError, match="expected 0 to 149"):
            samples[index]
    with pytest.raises(ConfigError, match="multiprocessing_context='fork'"):
        pickle.dumps(samples)

    straight = CropFlip.decode
    monkeypatch.setattr(CropFlip, "decode", lambda self, element_B: straight(self, element_B)[:, [1, 0, 2]])
    with pytest.raises(CacheMismatch, match="pixels differ"):
        DistillationSet("digits", cache, overrides=HERE)
    DistillationSet("digits", cache, overrides=HERE, allow_drift=True)


def test_a_top_k_cache_serves_its_temperature(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "k.zarr"
    done("convert", cache, out, "--codec", "top-k", "--k", "4", "--temperature", "4", "--allow-loss")
    with pytest.raises(CacheMismatch, match=r"needs raw logits .* or pass its temperature"):
        DistillationSet("digits", out, overrides=HERE)
    with pytest.raises(CacheMismatch, match="probabilities at temperature 2"):
        DistillationSet("digits", out, overrides=HERE, temperature=2)
    samples, raw = (
        DistillationSet("digits", place, overrides=HERE, temperature=4).__getitems__(range(150))
        for place in (out, cache)
    )
    kept, whole = (torch.stack([logits for _, _, logits in items]) for items in (samples, raw))
    top = whole.topk(4).indices
    torch.testing.assert_close(
        (kept / 4).softmax(1).gather(1, top), (whole / 4).softmax(1).gather(1, top), rtol=1e-3, atol=1e-4
    )


def test_an_unreadable_photograph_is_named(photographs: tuple[Path, Path, DataOptions], tmp_path: Path) -> None:
    """In a worker, too."""
    preset, cache, data = photographs
    root = shutil.copytree(data.root or "", tmp_path / "copy")
    samples = DistillationSet(preset, cache, data=DataOptions(str(root), workers=0))
    (root / "train" / "class1" / "1.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"class1/1\.jpg.*expected an image"):
        list(DataLoader(samples, batch_size=15, num_workers=1))


def test_logits_alone(cache: Path) -> None:
    reader = open_cache(cache)
    assert (reader.plan.num_views, reader.plan.num_samples) == (3, 150)
    np.testing.assert_array_equal(reader.read(2, [149, 0]), reader.read_view(2)[[149, 0]])
    assert reader.manifest.signals["logits"].codec.kind == "float16"
