"""Data without labels, test split or colours: odd fractions and folders, wrong objectives, and caches of others."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dhkd.configs.load import load_experiment
from dhkd.configs.schema import Experiment
from dhkd.data.cache.reader import open_cache
from dhkd.data.errors import CacheMismatch, ConfigError, DataError, DhkdError, RunMismatch, WeightsError
from dhkd.data.images.base import Decoding
from dhkd.data.images.held_out import held_out, parted
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.recipes.random_resized_crop import RandomResizedCrop
from dhkd.data.sources import SOURCES, load_source
from dhkd.data.sources.base import Place, Source
from dhkd.data.stream.labels import Labels
from dhkd.pipeline.build.checks import require_labels
from dhkd.pipeline.build.data import images_of, recipe_of
from dhkd.pipeline.build.training import objective_of
from dhkd.pipeline.caching import cache_teacher
from dhkd.pipeline.cli.tables.runs import runs_table
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.evaluation import evaluate_network
from dhkd.pipeline.report.comparison import compare
from dhkd.pipeline.results import CachedTeacher, TrainedRun
from dhkd.pipeline.training import train_student, train_teacher
from dhkd.stages.models import build_network
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.models.weights import save_weights
from dhkd.stages.train.objectives import losses
from dhkd.stages.train.objectives.own import OwnLoss
from PIL import Image

from tests.runs import result_of, run_of
from tests.samples import make_images, make_photo

HERE = DataOptions(workers=0)
SMALL = ["data.limit=40", "data.test_limit=20", "teacher=resnet8", "student=resnet8", "student.epochs=1"]
SMALL += ["cache.views=2", "student.batch_size=20", "teacher.batch_size=20", "teacher.epochs=1", "seed=0"]
UNLABELLED = ["data.labels=none", "objective=mse", "objectives.mse.ce_weight=0"]
PART = ["data.val_fraction=0.1"]


def digits(*overrides: str) -> Experiment:
    return load_experiment("digits", [*SMALL, *overrides])


def refused(error: type[DhkdError], *overrides: str) -> str:
    """Load the digits with these settings, which must fail in one line; return the line."""
    with pytest.raises(error) as raised:
        images_of(digits(*overrides), "train", HERE)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def weights(path: Path, channels: int = 3, classes: int = 10, *, metadata: bool = True) -> Path:
    torch.manual_seed(0)
    network = build_network("resnet8", classes, channels)
    save_weights(path, network, {"num_classes": str(classes), "architecture": "resnet8"} if metadata else {})
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


@pytest.fixture(scope="module")
def cached(teacher: Path) -> CachedTeacher:
    """A cache of nine tenths of the digits, without labels."""
    return cache_teacher(digits(*UNLABELLED, *PART), teacher, str(teacher.parent / "c.zarr"), data=HERE, cpu=True)


def trained(cached: CachedTeacher | None, out: Path, *overrides: str, **options: object) -> TrainedRun:
    place = cached.cache.path if cached else None
    return train_student(digits(*overrides), place, out, data=HERE, cpu=True, track=["none"], **options)  # type: ignore[arg-type]


# a part that is held out


@pytest.mark.parametrize("fraction", ["0", "1", "-0.1", "1.5", ".nan", "ten"])
def test_a_fraction_that_is_none_is_refused(fraction: str) -> None:
    assert "data.val_fraction: " in refused(ConfigError, f"data.val_fraction={fraction}")


def test_a_seed_of_no_part_is_refused() -> None:
    assert "expected val_fraction beside it, got none; set both" in refused(ConfigError, "data.val_seed=1")


@pytest.mark.parametrize(("samples", "classes", "fraction"), [(4, 4, 0.5), (40, 4, 1e-9), (2, 2, 0.9), (3, 2, 0.01)])
def test_a_part_of_nothing_is_refused(samples: int, classes: int, fraction: float) -> None:
    """Classes of one sample keep it, so that nothing is left to hold out."""
    with pytest.raises(ConfigError, match=r"^data\.val_fraction: expected a part of at least 1 .* holds out 0, since"):
        parted(make_images(samples, num_classes=classes), fraction, 0)


def test_classes_of_one_sample_keep_it() -> None:
    labels_N = torch.tensor([0] * 50 + [1] * 10 + [2] + [3] + [4, 4])
    for seed in range(30):
        held_N = held_out(labels_N, len(labels_N), 0.9, seed)
        left = torch.bincount(labels_N[~held_N], minlength=5)
        assert left.min() >= 1
        assert torch.bincount(labels_N[held_N], minlength=5)[:4].tolist()[2:] == [0, 0]


def test_a_part_takes_the_classes_in_proportion_and_each_sample_as_often() -> None:
    labels_N = torch.tensor([k for k in range(20) for _ in range(4 + 3 * k)])[torch.randperm(650).argsort()]
    times = torch.zeros(len(labels_N))
    for seed in range(200):
        held_N = held_out(labels_N, len(labels_N), 0.1, seed)
        assert int(held_N.sum()) == 65
        counts, sizes = torch.bincount(labels_N[held_N], minlength=20), torch.bincount(labels_N)
        assert bool(((counts - 0.1 * sizes).abs() < 1).all()), "rounded up or down"
        times += held_N
    of_small = times[labels_N == 0].mean() / 200
    assert 0.07 < of_small < 0.13, "a class of four is drawn as often as others"
    assert times.max() < 60


def test_a_part_depends_on_its_own_seed_alone() -> None:
    def chosen(*overrides: str) -> list[str]:
        parts = [images_of(digits(*PART, *overrides), split, HERE) for split in ("train", "test")]
        return [part.fingerprint() for part in parts]

    assert chosen() == chosen("seed=7", "views.seed=3", "data.val_seed=0")
    assert not set(chosen()) & set(chosen("data.val_seed=1"))


def test_a_limit_takes_no_sample_from_the_part() -> None:
    """Students of fewer samples are tested on the same images."""
    many, few = (images_of(digits(*PART, f"data.limit={n}", "data.test_limit=null"), "test", HERE) for n in (1200, 40))
    assert many.fingerprint() == few.fingerprint()
    assert many.split == "val"
    assert len(many) == 144
    with pytest.raises(ConfigError, match=r"^data\.limit: expected 1 to 1293, the size of digits, got 1294$"):
        images_of(digits(*PART, "data.limit=1294"), "train", HERE)


def test_labels_that_are_no_classes_are_refused_before_they_decide() -> None:
    odd = replace(make_images(20), labels_N=torch.tensor([-1, 3] * 10))
    SOURCES["odd"] = Source(lambda split, place: odd)
    try:
        with pytest.raises(DataError, match="labels expected 0 to 4, got -1 to 3"):
            load_source("odd", "train", held_out=(0.1, 0))
    finally:
        del SOURCES["odd"]


def test_a_cache_of_another_part_does_not_fit(cached: CachedTeacher, tmp_path: Path) -> None:
    for change in ("data.val_fraction=0.2", "data.val_fraction=null", "data.val_seed=1"):
        with pytest.raises((CacheMismatch, ConfigError)) as raised:
            trained(cached, tmp_path / "s", *UNLABELLED, *PART, change, "data.test_limit=null")
        assert "dataset.split expected train" in str(raised.value)
    assert not (tmp_path / "s").exists()


def test_a_run_of_another_part_is_not_resumed(tmp_path: Path) -> None:
    run = trained(None, tmp_path / "s", *PART, "objective=ce")
    assert run.measured == "val accuracy"
    for change in ("data.val_fraction=0.2", "data.val_seed=1"):
        with pytest.raises(RunMismatch, match=r"experiment\.data\.val_\w+ expected"):
            trained(None, tmp_path / "s", *PART, "objective=ce", change, resume=True)
    assert trained(None, tmp_path / "s", *PART, "objective=ce", resume=True) == run
    again = evaluate_network(load_experiment(str(tmp_path / "s")), tmp_path / "s", "student", data=HERE, cpu=True)
    assert (again.top1, again.measured, again.samples) == (run.last_top1, "val accuracy", 20)


# images without labels


@pytest.mark.parametrize(
    ("objective", "remedy"),
    [
        ("ce", "choose an objective without labels"),
        ("label-smoothing", "choose an objective without labels"),
        ("dhkd", "choose an objective without labels"),
        ("dkd", "choose an objective without labels"),
        ("crd", "choose an objective without labels"),
        ("kd", "train without it: --set objectives.kd.ce_weight=0"),
        ("binary-kl", "train without it: --set objectives.binary-kl.ce_weight=0"),
        ("kd + 0.5 * rkd", "--set objectives.kd.ce_weight=0 --set objectives.rkd.ce_weight=0"),
        ("kd + crd", "choose an objective without labels"),
    ],
)
def test_an_objective_of_labels_is_refused_with_what_would_do(objective: str, remedy: str) -> None:
    experiment, images = digits("data.labels=none", f"objective={objective}"), make_images().without_labels(None)
    with pytest.raises(ConfigError) as raised:
        require_labels(experiment, objective_of(experiment), images)
    assert remedy in str(raised.value)
    assert "expected images with labels, for ce" in str(raised.value)
    require_labels(experiment, objective_of(experiment), make_images())


@pytest.mark.parametrize("name", ["kd", "mse", "binary-kl", "binary-kl-norm", "dist", "rkd", "at", "fitnet", "simkd"])
def test_an_objective_without_cross_entropy_needs_no_labels(name: str) -> None:
    experiment = digits("data.labels=none", f"objective={name}", f"objectives.{name}.ce_weight=0")
    require_labels(experiment, objective_of(experiment), make_images().without_labels(None))


def test_an_alignment_with_cross_entropy_needs_labels() -> None:
    aligned = "alignment={kept: [ce], against: [kd]}"
    experiment = digits("data.labels=none", "objective=kd", "objectives.kd.ce_weight=0", aligned)
    with pytest.raises(ConfigError, match=r"for ce, got random without; train without it: .* --set alignment=null"):
        require_labels(experiment, objective_of(experiment), make_images().without_labels(None))


def test_a_loss_of_ones_own_that_asks_for_labels_is_told_that_there_are_none() -> None:
    logits = torch.zeros(2, 5, requires_grad=True)
    for ask in (losses.cross_entropy, lambda x, labels: labels.one_class_each("mine")):
        with pytest.raises(ConfigError, match="expected images with labels"):
            ask(logits, Labels())
    losses.task_loss(logits, Labels()).backward()
    assert logits.grad is not None
    assert bool((logits.grad == 0).all())
    assert Labels().map(torch.clone).are_absent
    with pytest.raises(AssertionError):
        Labels().copy_(Labels(torch.zeros(2, dtype=torch.int64)))


def test_a_function_of_ones_own_gets_no_labels_where_there_are_none() -> None:
    given: list[object] = []

    def mine(student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        given.append(labels)
        return (student_logits - teacher_logits).square().mean()

    objective = OwnLoss("mine", mine)
    assert not objective.needs_labels
    logits = torch.zeros(2, 5, requires_grad=True)
    objective.terms(StudentOutputs(logits, logits, {}), Labels(), {"logits": torch.ones(2, 5)})
    assert given == [None]


def test_a_student_of_unlabelled_images_is_measured_by_agreement(cached: CachedTeacher, tmp_path: Path) -> None:
    assert cached.teacher_top1 is None
    run = trained(cached, tmp_path / "s", *UNLABELLED, *PART)
    assert run.measured == "val agreement"
    assert trained(cached, tmp_path / "s", *UNLABELLED, *PART, resume=True) == run
    lines = (tmp_path / "s/metrics.jsonl").read_text()
    assert '"ce"' not in lines
    assert "train_top1" not in lines, "nothing is said that isn't known"
    teacher = Path(cached.cache.path).parent / "teacher.safetensors"
    experiment = load_experiment(str(tmp_path / "s"))
    again = evaluate_network(experiment, tmp_path / "s", "student", data=HERE, cpu=True, against=teacher)
    assert (again.top1, again.measured) == (run.last_top1, "val agreement")
    itself = evaluate_network(experiment, teacher, "student", data=HERE, cpu=True, against=teacher)
    assert itself.top1 == 100
    with pytest.raises(ConfigError, match=r"no labels: expected a teacher .*; give both --student and --teacher$"):
        evaluate_network(experiment, tmp_path / "s", "student", data=HERE, cpu=True)


def test_labels_of_the_test_images_alone_give_accuracy(teacher: Path, tmp_path: Path) -> None:
    only = ["data.labels=test", *UNLABELLED[1:]]
    cached = cache_teacher(digits(*only), teacher, str(tmp_path / "c.zarr"), data=HERE, cpu=True)
    assert cached.teacher_top1 is not None
    run = trained(cached, tmp_path / "s", *only)
    assert run.measured is None
    assert "train_top1" not in (tmp_path / "s/metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match="expected images with labels, for ce, got digits without"):
        train_teacher(digits(*only), tmp_path / "t", data=HERE, cpu=True, track=["none"])


def test_a_cache_that_knows_nothing_of_these_test_images_is_not_guessed_from(
    cached: CachedTeacher, teacher: Path, tmp_path: Path
) -> None:
    other = [*UNLABELLED, *PART, "data.test_limit=10"]
    with pytest.raises(ConfigError, match=r"expected the teacher's classes of these images .*--teacher FILE"):
        trained(cached, tmp_path / "s", *other)
    assert trained(cached, tmp_path / "s", *other, resume=True, teacher=teacher).measured == "val agreement"
    live = [*UNLABELLED, "teacher.live=true"]
    assert trained(None, tmp_path / "live", *live, teacher=teacher).measured == "test agreement"


def test_runs_that_measure_different_things_are_told_apart() -> None:
    def run(seed: int, measured: str | None, top1: float, **settings: object) -> object:
        facts = {"measured": measured} if measured else {}
        return run_of(seed, result=result_of(top1), run=facts, name=f"{measured}-{seed}-{settings}", **settings)

    both = [run(s, m, 50 + s) for s in range(2) for m in (None, "val agreement")]
    compared = compare(both)  # type: ignore[arg-type]
    assert list(compared.axes) == ["measured"]
    assert compared.top1 == "top-1"
    assert len(compared.rows) == 2
    assert any("measure different things (test accuracy, val agreement)" in line for line in compared.warnings)
    one = compare([run(0, "val accuracy", 50, objective="kd"), run(0, "val accuracy", 60, objective="ce")])  # type: ignore[list-item]
    assert one.top1 == "val top-1"
    assert "val top-1 %" in runs_table(one)
    assert "val top-1 %" not in runs_table(compared)
    assert all(row.published is None for row in one.rows), "the paper's figures are of the test split"
    against = compare([run(0, "val accuracy", 50, objective="kd"), run(0, None, 60, objective="ce")])  # type: ignore[list-item]
    assert all(row.difference is None for row in against.rows)


# folders


def folder_of(path: Path, *names: str, size: tuple[int, int] = (20, 16)) -> Path:
    for number, name in enumerate(names):
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        make_photo(number, *size).save(file)
    return path


def images_in(root: Path, split: str = "train", **settings: object) -> ImageSet:
    place = Place(str(root), network_classes=10, **settings)  # type: ignore[arg-type]
    return load_source("folder", split, place).in_memory(Decoding())  # type: ignore[return-value]


def test_a_folder_of_images_needs_no_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder_of(tmp_path, "a.png", "deep/er/b.png", "deep/c.png", ".hidden.png")
    (root / "notes.txt").write_text("x")
    images = images_in(root)
    assert (len(images), images.labels_N, images.num_classes) == (3, None, 10)
    expected = {np.asarray(make_photo(n, 20, 16)).tobytes() for n in range(3)}
    assert {image.permute(1, 2, 0).numpy().tobytes() for image in images.images_NCHW} == expected
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    with pytest.raises(ConfigError, match=r"^data\.num_classes: images without labels don't say how many"):
        load_source("folder", "train", Place(str(root)))


def test_class_folders_are_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder_of(tmp_path, "cat/a.png", "dog/b.png")
    assert images_in(root).labels_N is None
    assert "whose names are not used as labels; if they are classes, use data.source=image-folder" in caplog.text


def test_empty_and_missing_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty/inner").mkdir(parents=True)
    (tmp_path / "empty/notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"expected images .*found none but 1 \.txt; name their folder"):
        images_in(tmp_path / "empty")
    with pytest.raises(DataError, match=r"expected a folder of images at .*gone, got: No such file"):
        images_in(tmp_path / "gone")
    with pytest.raises(ConfigError, match="expected the place of its files; name it with --data-root"):
        load_source("folder", "train", Place(network_classes=10))


def test_test_images_do_not_lie_among_the_training_images(tmp_path: Path) -> None:
    root = folder_of(tmp_path, "a.png", "b.png", "test/c.png")
    for split in ("train", "test"):
        with pytest.raises(ConfigError, match=r"^data\.test: expected a folder outside of the training images"):
            images_in(root, split, test="test")
    with pytest.raises(ConfigError, match=r"expected a folder of test images, got none; .* data.val_fraction"):
        images_in(root, "test")
    assert len(load_source("folder", "test", Place(str(root), network_classes=10), held_out=(0.4, 0))) == 1


def test_labelled_test_images_beside_a_folder(tmp_path: Path) -> None:
    root = folder_of(tmp_path, "train/a.png", "train/b.png", "val/cat/c.png", "val/dog/d.png")
    place = Place(str(root), train="train", test="val", labels="test", network_classes=2)
    assert load_source("folder", "train", place).labels_N is None
    test = load_source("folder", "test", place)
    assert test.labels_N is not None
    assert sorted(test.labels_N.tolist()) == [0, 1]
    with pytest.raises(ConfigError, match="expected labels of the held-out images, folder has none"):
        load_source("folder", "test", place, held_out=(0.5, 0))


def test_the_teacher_tells_how_many_classes_there_are(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "images", *(f"{n}.png" for n in range(12)), size=(8, 8))
    data = replace(HERE, root=str(root))
    sets = ["data.source=folder", "data.limit=null", "data.test_limit=null", "data.val_fraction=0.25", *UNLABELLED[1:]]
    sets += ["student.batch_size=4", "objectives.mse.ce_weight=0"]
    for metadata in (True, False):
        file = weights(tmp_path / f"{metadata}.safetensors", classes=7, metadata=metadata)
        out = str(tmp_path / f"{metadata}.zarr")
        result = cache_teacher(digits(*sets), file, out, data=data, cpu=True)
        assert (result.cache.classes, result.cache.samples) == (7, 9)
    run = train_student(digits(*sets), out, tmp_path / "s", data=data, cpu=True, track=["none"])
    assert run.measured == "val agreement"
    with pytest.raises(ConfigError, match=r"^data\.num_classes"):
        train_student(digits(*sets), None, tmp_path / "x", data=data, cpu=True, track=["none"])


# a part of encoded files


@pytest.fixture
def classes_of_photos(tmp_path: Path) -> Path:
    for label in range(2):
        folder_of(tmp_path / "train", *(f"{label}/{n}.png" for n in range(8)))
    return tmp_path


def test_a_part_of_files_renders_names_and_counts_as_the_whole_does(classes_of_photos: Path) -> None:
    place, recipe = Place(str(classes_of_photos)), RandomResizedCrop(size=8, flip=True, seed=3)
    whole = load_source("image-folder", "train", place)
    left, val = (load_source("image-folder", split, place, held_out=(0.25, 0)) for split in ("train", "test"))
    assert (len(left), len(val)) == (12, 4)
    held_N = held_out(whole.labels_N, 16, 0.25, 0)
    for part, index_N in ((left, torch.nonzero(~held_N)[:, 0]), (val, torch.nonzero(held_N)[:, 0])):
        for workers in (0, 2):
            renderer = part.renderer(recipe.at_test(), torch.device("cpu"), Decoding(workers))
            keys = torch.zeros(len(part), dtype=torch.int64), torch.arange(len(part))
            (pixels,) = renderer.render([keys])
            all_pixels = whole.renderer(recipe.at_test(), torch.device("cpu"), Decoding())
            (expected,) = all_pixels.render([(keys[0], index_N)])
            assert torch.equal(pixels, expected)
    fingerprints = {part.fingerprint() for part in (whole, left, val, left.first(4), val.subset(torch.tensor([0, 2])))}
    assert len(fingerprints) == 5
    assert left.first(12).fingerprint() == left.fingerprint()


def test_a_bad_file_of_a_part_is_named(classes_of_photos: Path) -> None:
    place = Place(str(classes_of_photos))
    val = load_source("image-folder", "test", place, held_out=(0.25, 0))
    for file in (classes_of_photos / "train").rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"train/[01]/\d\.png \(index 0\): expected an image"):
        val.in_memory(Decoding())


# grey images


def test_colours_become_grey_as_pillow_converts_them() -> None:
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 256, (6, 3, 40, 50), dtype=torch.uint8, generator=generator)
    images = ImageSet("c", "train", colours, torch.arange(6) % 2, 2, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    grey = images.with_channels(1)
    expected = [np.asarray(Image.fromarray(c.permute(1, 2, 0).numpy()).convert("L")) for c in colours]
    assert np.array_equal(grey.images_NCHW[:, 0].numpy(), np.stack(expected))
    assert grey.mean == pytest.approx((0.299 * 0.5 + 0.587 * 0.4 + 0.114 * 0.3,))
    back = grey.with_channels(3).with_channels(1)
    assert torch.equal(back.images_NCHW, grey.images_NCHW), "grey that was repeated comes back unchanged"
    assert grey.fingerprint() != images.fingerprint()


@pytest.mark.parametrize("recipe", ["crop-flip", "random-resized-crop"])
def test_grey_views_are_the_grey_of_colour_views_in_memory_and_from_files(recipe: str, tmp_path: Path) -> None:
    """Cropping moves pixels; resizing grey images differs from turning resized ones grey by rounding alone."""
    for label in range(2):
        folder_of(tmp_path / "train", *(f"{label}/{n}.png" for n in range(3)), size=(16, 16))
    for file in (tmp_path / "train").rglob("*.png"):
        Image.open(file).convert("L").save(file)
    views = "{kind: crop-flip, padding: 2, flip: true}" if recipe == "crop-flip" else f"{{kind: {recipe}, size: 8}}"
    extra = [] if recipe == "crop-flip" else ["views.flip=true"]
    sets = ["data.source=image-folder", "data.limit=null", f"views={views}", *extra]
    pixels = {}
    for channels in ("1", "3"):
        experiment = digits(*sets, f"data.channels={channels}")
        images = images_of(experiment, "train", replace(HERE, root=str(tmp_path)))
        assert images.channels == int(channels)
        renderer = images.renderer(recipe_of(experiment.views), torch.device("cpu"), Decoding())
        (pixels[channels],) = renderer.render([(torch.arange(6), torch.arange(6))])
    assert pixels["1"].shape == (6, 1, *pixels["3"].shape[2:])
    assert torch.equal(pixels["1"].expand_as(pixels["3"]), pixels["3"])


def test_sixteen_bit_grey_is_read_in_one_channel(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    for name in ("a.png", "b.png"):
        Image.fromarray(levels).save(tmp_path / name)
    images = load_source("folder", "train", Place(str(tmp_path), network_classes=2), channels=1).in_memory(Decoding())
    assert isinstance(images, ImageSet)
    assert np.array_equal(images.images_NCHW[0, 0].numpy(), (levels >> 8).astype(np.uint8))


@pytest.mark.parametrize("name", ["data.channels=2", "teacher.channels=4", "data.mean=[0.1, 0.2]", "data.std=[]"])
def test_other_numbers_of_channels_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        digits(name)


def test_a_teacher_of_other_channels_is_told(teacher: Path, tmp_path: Path) -> None:
    told = r"expected a network whose input has 1 channels, got one of 3; set teacher\.channels=3, and images of 1"
    with pytest.raises(WeightsError, match=told):
        cache_teacher(digits("data.channels=1"), teacher, str(tmp_path / "c.zarr"), data=HERE, cpu=True)
    one = weights(tmp_path / "one.safetensors", channels=1)
    three = digits("data.channels=1", "teacher.mean=[0.1, 0.2, 0.3]")
    with pytest.raises(ConfigError, match=r"teacher\.mean: expected one number for each of 1 channels, got 3"):
        cache_teacher(three, one, str(tmp_path / "c.zarr"), data=HERE, cpu=True)
    assert not (tmp_path / "c.zarr").exists()


def test_a_teacher_of_three_channels_teaches_a_student_of_one(teacher: Path, tmp_path: Path) -> None:
    """Both see the same grey views, which are repeated for the teacher: the rows are those of a cache of colours."""
    caches = []
    for number, sets in enumerate((["data.channels=1", "teacher.channels=3"], [])):
        caches.append(cache_teacher(digits(*sets), teacher, str(tmp_path / f"{number}.zarr"), data=HERE, cpu=True))
    rows = [open_cache(cached.cache.path).read(1, np.arange(40), "logits") for cached in caches]
    assert np.array_equal(*rows), "the digits are grey"
    assert caches[0].cache.digest != caches[1].cache.digest
    run = trained(caches[0], tmp_path / "s", "data.channels=1", "teacher.channels=3", "objective=kd")
    colour = trained(caches[1], tmp_path / "t", "objective=kd")
    assert run.parameters == colour.parameters - 2 * 16 * 9, "one input channel instead of three"
