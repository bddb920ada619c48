"""Teachers that people have: of another input size, of other classes, in several files; and students' first weights."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from dhkd.configs.load import load_experiment
from dhkd.configs.schema import Experiment
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.errors import CacheMismatch, ConfigError, DhkdError, RunMismatch, WeightsError
from dhkd.data.images.resizing import Resizing
from dhkd.data.render import Normalization
from dhkd.data.runs.read import require_runs
from dhkd.pipeline.api import DistillationSet
from dhkd.pipeline.build.beginning import beginning_of
from dhkd.pipeline.build.data import images_of, recipe_of
from dhkd.pipeline.build.teacher import trained_teacher
from dhkd.pipeline.build.training import objective_of, setting_of, student_of
from dhkd.pipeline.cache_tools import verify
from dhkd.pipeline.caching import cache_teacher
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.evaluation import evaluate_network
from dhkd.pipeline.report.table import axes_of
from dhkd.pipeline.training import train_student, train_students, train_teacher
from dhkd.stages.models import build_network
from dhkd.stages.models.projected import ProjectedNetwork
from dhkd.stages.models.signals import class_activation_maps
from dhkd.stages.models.weights import read_weights, save_weights, weights_sha256
from safetensors.torch import save_file
from torch import Tensor

from tests.pipeline.conftest import SETTINGS, experiment_of, untrained_weights
from tests.samples import encoded, files_of, make_photo

DATA = DataOptions()
LARGER = ("teacher.size=16", "cache.codec=float32")
NUMBERS = (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)
OTHER_ORDER = (f"teacher.classes=[{','.join(map(str, NUMBERS))}]", "cache.codec=float32")
State = Mapping[str, Tensor]


def one_line(error: pytest.ExceptionInfo[DhkdError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_weights(tmp_path_factory.mktemp("weights") / "teacher.safetensors", seed=0)


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A resnet8 of 40 classes."""
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("weights") / "many.pth"
    torch.save({"epoch": 3, "model": build_network("resnet8", 40).state_dict()}, file)
    return file


def cached(teacher: Path, out: Path, *overrides: str, name: str | None = None) -> LogitReader:
    cache_teacher(experiment_of(*overrides), teacher, str(out), data=DATA, name=name, cpu=True)
    return open_cache(str(out))


@pytest.fixture(scope="module")
def larger(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> LogitReader:
    """A cache of digits of 8×8 pixels, which the teacher saw at 16×16; never to be changed."""
    return cached(weights, tmp_path_factory.mktemp("caches") / "c.zarr", *LARGER)


@pytest.fixture(scope="module")
def reordered(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> LogitReader:
    """A cache of the logits in another order; never to be changed."""
    return cached(weights, tmp_path_factory.mktemp("caches") / "c.zarr", *OTHER_ORDER)


# a teacher's size


def test_a_teacher_of_another_size_is_cached_as_it_computes(larger: LogitReader, weights: Path) -> None:
    experiment = experiment_of(*LARGER)
    images, recipe = images_of(experiment, "train", DATA), recipe_of(experiment.views)
    index_N = torch.arange(len(images))
    pixels = recipe.resident(images.images_NCHW)(torch.ones_like(index_N), index_N)  # type: ignore[attr-defined]
    network = build_network("resnet8", 10).eval()
    network.load_state_dict(read_weights(weights))
    with torch.no_grad():
        expected = network(Normalization(images.mean, images.std, Resizing(16, "bilinear"))(pixels))
        as_they_are = network(Normalization(images.mean, images.std)(pixels))
    got = torch.from_numpy(larger.read(1, index_N.numpy(), "logits"))
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(got, as_they_are, atol=1e-2)
    teacher = larger.manifest.signals["logits"].teacher
    assert (teacher["size"], teacher["interpolation"]) == (16, "bilinear")


def test_the_witness_is_that_of_the_students_pixels(larger: LogitReader, weights: Path, tmp_path: Path) -> None:
    plain = cached(weights, tmp_path / "p.zarr")
    for view in (0, 1):
        one, two = (reader.stored(reader.plan.block(view, 0), "witness")[""] for reader in (larger, plain))
        assert np.array_equal(one, two)


def test_teachers_of_several_sizes_share_a_cache_and_its_mean(weights: Path, tmp_path: Path) -> None:
    cached(weights, tmp_path / "c.zarr")
    reader = cached(weights, tmp_path / "c.zarr", "teacher.size=16", name="large")
    assert set(reader.manifest.signals) == {"logits", "large.logits"}
    mean = experiment_of("student.teacher=mean", "student=resnet8")
    result = train_student(mean, str(tmp_path / "c.zarr"), tmp_path / "run", data=DATA, cpu=True)
    assert result.epochs == 1


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ((), "size expected nothing, got 16"),
        (("teacher.size=32",), "size expected 32, got 16"),
        (("teacher.size=16", "teacher.interpolation=bicubic"), "interpolation expected bicubic, got bilinear"),
        (("teacher.size=16", OTHER_ORDER[0]), "classes expected [3, 1, 4"),
    ],
)
def test_a_cache_of_another_size_is_refused(
    overrides: tuple[str, ...], says: str, larger: LogitReader, tmp_path: Path
) -> None:
    with pytest.raises(CacheMismatch) as error:
        train_student(experiment_of(*overrides), larger.location, tmp_path / "run", data=DATA, cpu=True)
    assert says in one_line(error)


def test_a_signal_of_another_size_can_not_be_added_to_the_same_teacher(weights: Path, tmp_path: Path) -> None:
    cached(weights, tmp_path / "c.zarr")
    with pytest.raises(CacheMismatch, match=r"size expected nothing|size expected 16, got nothing"):
        cached(weights, tmp_path / "c.zarr", "teacher.size=16", "cache.signals=[embedding]")


def test_verify_computes_at_the_teachers_size(larger: LogitReader, weights: Path) -> None:
    result = verify(larger.location, experiment_of(*LARGER), data=DATA, teacher=weights, rows=20, cpu=True)
    assert result.live is not None
    assert result.live.largest_difference_from_live < 1e-5


def test_a_live_teacher_of_another_size_trains_as_the_cache_does(
    larger: LogitReader, weights: Path, tmp_path: Path
) -> None:
    views = ("student.views=2", "objective=kd")
    runs = {
        "cached": train_student(
            experiment_of(*LARGER, *views), larger.location, tmp_path / "cached", data=DATA, cpu=True
        ),
        "live": train_student(
            experiment_of(*LARGER, *views, "teacher.live=true"),
            None,
            tmp_path / "live",
            data=DATA,
            teacher=weights,
            cpu=True,
        ),
    }
    (cached_kd, live_kd) = (
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])["kd"] for name in runs
    )
    assert cached_kd == pytest.approx(live_kd, rel=1e-4)


def test_a_teacher_is_trained_and_measured_at_its_size(tmp_path: Path) -> None:
    experiment = experiment_of("teacher.size=16", "teacher.batch_size=10", "teacher.precision=float32")
    result = train_teacher(experiment, tmp_path / "run", data=DATA, cpu=True)
    measured = evaluate_network(experiment, tmp_path / "run", "teacher", data=DATA, cpu=True)
    assert measured.top1 == result.last_top1
    assert measured.sha256 == result.sha256


@pytest.mark.parametrize("workers", [0, 2])
def test_photographs_are_cut_out_once_for_both_sizes(
    workers: int, weights: Path, tmp_path: Path, no_workers_of_the_last_test: None
) -> None:
    for split in ("train", "val"):
        for number in range(6):
            (tmp_path / split / f"c{number % 2}").mkdir(parents=True, exist_ok=True)
            (tmp_path / split / f"c{number % 2}" / f"{number}.jpg").write_bytes(encoded(make_photo(number, 40, 30)))
    torch.manual_seed(0)
    file = tmp_path / "w.safetensors"
    save_weights(file, build_network("resnet8", 2), {})
    settings = [
        *("data.source=image-folder", "data.limit=null", "data.test_limit=null", "views.kind=random-resized-crop"),
        *("views.padding=null", "views.size=8", "views.flip=true", "teacher.size=20", "cache.codec=float32"),
        *("cache.views=3", "cache.batch_size=2"),
    ]
    contents = []
    for at_once in (1, 3):
        out, data = tmp_path / f"{at_once}.zarr", DataOptions(root=str(tmp_path), workers=workers)
        experiment = experiment_of(*settings, f"cache.views_at_once={at_once}")
        result = cache_teacher(experiment, file, str(out), data=data, cpu=True)
        assert result.live is not None
        contents.append({name: content for name, content in files_of(out).items() if "/c/" in name})
    assert contents[0] == contents[1]


def test_simkd_takes_no_teacher_of_another_size(weights: Path, tmp_path: Path) -> None:
    experiment = experiment_of("teacher.size=16", "objective=simkd", "teacher.live=true", "student=resnet8")
    with pytest.raises(
        ConfigError, match=r"simkd:resnet8\+resnet8, .*expected no teacher.size but the student's, got 16"
    ):
        train_student(experiment, None, tmp_path / "run", data=DATA, teacher=weights, cpu=True)


# a teacher's classes


def test_the_right_outputs_arrive(weights: Path, reordered: LogitReader, tmp_path: Path) -> None:
    plain = cached(weights, tmp_path / "p.zarr", "cache.codec=float32")
    rows = np.arange(20)
    one, two = plain.read(1, rows, "logits"), reordered.read(1, rows, "logits")
    assert np.array_equal(one[:, list(NUMBERS)], two)
    teachers = [reader.manifest.signals["logits"].teacher for reader in (plain, reordered)]
    assert teachers[0]["sha256"] == teachers[1]["sha256"], "that of the file"
    assert teachers[1]["classes"] == list(NUMBERS)
    assert "classes" not in teachers[0]


def test_names_in_a_file_a_list_and_the_weights_say_the_same(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(40)]
    order = [17, 3, 30, 4, 39, 0, 11, 8, 22, 5]
    for digit, number in enumerate(order):
        names[number] = str(digit)
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8-sig")
    torch.manual_seed(3)
    file = tmp_path / "w.safetensors"
    save_weights(file, build_network("resnet8", 40), {"classes": json.dumps(names)})
    listed = json.dumps(names)
    data = DataOptions(root=str(tmp_path))
    for setting in ("names.txt", listed, "weights", json.dumps(order)):
        experiment = experiment_of(f"teacher.classes={setting}")
        trained = trained_teacher(experiment, images_of(experiment, "train", data), file, data)
        assert trained.classes == tuple(order), setting
        assert trained.network(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


def test_names_that_dhkd_wrote_into_a_teachers_weights(tmp_path: Path) -> None:
    experiment = experiment_of("teacher.batch_size=10", "teacher.precision=float32")
    train_teacher(experiment, tmp_path / "run", data=DATA, cpu=True)
    named = experiment_of("teacher.classes=weights")
    trained = trained_teacher(named, images_of(named, "train", DATA), tmp_path / "run", DATA)
    assert trained.classes == tuple(range(10))


def imagenets_sample(photographs: Path) -> tuple[Experiment, DataOptions]:
    settings = [
        *("data.source=image-folder", f"data.train={photographs.name}", f"data.test={photographs.name}"),
        *("data.limit=null", "data.test_limit=null", "views.kind=random-resized-crop", "views.padding=null"),
        *("views.size=32", "views.flip=true", "teacher=torchvision:resnet18", "teacher.classes=timm"),
    ]
    return experiment_of(*settings), DataOptions(root=str(photographs.parent))


def test_250_of_imagenets_classes_by_their_wordnet_ids(photographs: Path, tmp_path: Path) -> None:
    """Each fourth class is there."""
    pytest.importorskip("timm", reason="needs timm, which knows ImageNet's WordNet ids")
    torch.manual_seed(0)
    whole = build_network("torchvision:resnet18", 1000).eval()
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    experiment, data = imagenets_sample(photographs)
    images = images_of(experiment, "train", data)
    trained = trained_teacher(experiment, images, tmp_path / "w.pth", data)
    assert images.num_classes == 250
    assert trained.classes == tuple(range(0, 1000, 4))
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(trained.network(pixels), whole(pixels)[:, ::4])
    assert trained.sha256 == weights_sha256(whole)


def test_accuracy_is_measured_of_the_mapped_classes(weights: Path, tmp_path: Path) -> None:
    network = build_network("resnet8", 10)
    network.load_state_dict(read_weights(weights))
    rows = torch.tensor(NUMBERS).argsort()
    with torch.no_grad():
        network.fc.weight.copy_(network.fc.weight[rows])  # type: ignore[operator, union-attr, index]
        network.fc.bias.copy_(network.fc.bias[rows])  # type: ignore[operator, union-attr, index]
    save_weights(tmp_path / "moved.safetensors", network, {})
    more = ("data.test_limit=200",)
    plain = evaluate_network(experiment_of(*more), weights, "teacher", data=DATA, cpu=True)
    mapped = evaluate_network(
        experiment_of(*more, OTHER_ORDER[0]),
        tmp_path / "moved.safetensors",
        "teacher",
        data=DATA,
        cpu=True,
    )
    assert mapped.top1 == plain.top1


def test_class_activation_maps_and_simkds_classifier_are_of_the_mapped_classes(forty: Path) -> None:
    numbers = list(range(2, 40, 4))
    experiment = experiment_of(f"teacher.classes={json.dumps(numbers)}", "student=resnet8", "objective=simkd")
    images = images_of(experiment, "train", DATA)
    trained = trained_teacher(experiment, images, forty, DATA)
    whole = build_network("resnet8", 40).eval()
    whole.load_state_dict(torch.load(forty)["model"])
    with torch.no_grad():
        outputs = whole.outputs(torch.rand(2, 3, 8, 8), maps=True)
        expected = class_activation_maps(outputs.final, whole.head, (2, 2))[:, numbers]  # type: ignore[arg-type]
        assert torch.equal(class_activation_maps(outputs.final, trained.network.head, (2, 2)), expected)  # type: ignore[arg-type]
    objective = objective_of(experiment)
    setting = setting_of(experiment, experiment.student, images, objective, trained.network)
    head = student_of(objective, setting).backbone.head
    assert torch.equal(head.weight, whole.head.weight[numbers])  # type: ignore[operator, union-attr, index]


@pytest.mark.parametrize(
    "overrides", [("objective=cat-kd",), ("objective=dhkd",), ("objective=simkd", "student=resnet8")]
)
def test_a_live_teacher_of_more_classes_trains(overrides: tuple[str, ...], forty: Path, tmp_path: Path) -> None:
    numbers = json.dumps(list(range(0, 40, 4)))
    experiment = experiment_of(f"teacher.classes={numbers}", "teacher.live=true", *overrides)
    result = train_student(experiment, None, tmp_path / "run", data=DATA, teacher=forty, cpu=True)
    assert result.distillation is not None


# What `teacher.classes` says of a teacher of 40 outputs, and what the one line says.
UNFIT_CLASSES = {
    "too few numbers": ("[1, 2]", "expected 10 numbers, the teacher's output for each class of digits, got 2"),
    "a number twice": ("[0,1,2,3,4,5,6,7,8,8]", "got 8 for the classes 8 and 9"),
    "a number that is no output": ("[0,1,2,3,4,5,6,7,8,40]", "numbers from 0 to 39, the outputs of"),
    "names of nothing": ("[a, b]", "found none among 2 names for 10 of 10 classes (0, 1, 2, …"),
    "names of too few outputs": ('["0","1","2","3","4","5","6","7","8","9"]', "expected 40 names, one for each output"),
    "a name twice": (json.dumps([str(k % 10) for k in range(40)]), "found 4 named '0' (numbers 0, 10, 20)"),
    "no such file": ("names.txt", "a list, or a file with the name of one output in each line, got: no such file"),
    "an empty file": ("empty.txt", "got an empty file"),
    "no text": ("image.txt", "got: it is not text"),
    "a folder": ("folder", "got: not a file"),
    "a link out of the data": ("link.txt", "got a link that leads out of it"),
    "a near miss": ("near.txt", "for 1 of 10 classes (nine, whose nearest is 'nine.')"),
    "weights without names": ("weights", "expected weights that name their outputs"),
    "ImageNet's names": ("torchvision", "found none among 1,000 names for 10 of 10 classes"),
}


@pytest.mark.parametrize("kind", UNFIT_CLASSES)
def test_classes_that_do_not_fit(kind: str, forty: Path, tmp_path: Path) -> None:
    setting, says = UNFIT_CLASSES[kind]
    root, names = tmp_path / "data", [f"n{k}" for k in range(30)]
    (root / "folder").mkdir(parents=True)
    (root / "empty.txt").write_text(" \n\n")
    (root / "image.txt").write_bytes(bytes(range(128, 256)))
    (tmp_path / "secret.txt").write_text("secret")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "near.txt").write_text("\n".join([*map(str, range(9)), "nine.", *names]))
    experiment = experiment_of(f"teacher.classes={setting}")
    images = images_of(experiment, "train", DATA)
    if kind == "a near miss":
        object.__setattr__(images, "class_names", (*map(str, range(9)), "nine"))
    with pytest.raises(DhkdError) as error:
        trained_teacher(experiment, images, forty, DataOptions(root=str(root)))
    assert says in one_line(error)
    assert "secret'" not in str(error.value)


def test_names_need_names_of_the_data(forty: Path) -> None:
    experiment = experiment_of("teacher.classes=[a, b]")
    images = images_of(experiment, "train", DATA)
    object.__setattr__(images, "class_names", ())
    with pytest.raises(ConfigError, match="digits doesn't say the names of its classes; list the teacher's output"):
        trained_teacher(experiment, images, forty, DATA)


@pytest.mark.parametrize(
    "setting",
    ["[]", "5", "[a, 1]", "[-1]", "[1.5]", "[true]", "{a: 1}", "/etc/passwd", "../names", "s3://a/b", "[.nan]"],
)
def test_a_setting_that_is_none(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.classes: expected"):
        experiment_of(f"teacher.classes={setting}")


def test_a_cache_of_other_classes_is_refused(reordered: LogitReader, tmp_path: Path) -> None:
    for overrides, says in (
        ((), "classes expected nothing, got [3, 1"),
        (("teacher.classes=[0,1,2,3,4,5,6,7,9,8]",), "classes expected [0, 1, 2, 3, 4, 5, 6, 7, 9, 8], got [3, 1"),
    ):
        with pytest.raises(CacheMismatch) as error:
            train_student(experiment_of(*overrides), reordered.location, tmp_path / "run", data=DATA, cpu=True)
        assert says in one_line(error)
    train_student(experiment_of(*OTHER_ORDER), reordered.location, tmp_path / "run", data=DATA, cpu=True)


def test_a_teacher_is_not_trained_on_other_classes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.classes: expected none, since a teacher is trained on"):
        train_teacher(experiment_of(OTHER_ORDER[0]), tmp_path / "run", data=DATA, cpu=True)


def test_a_set_of_the_cache_alone_knows_size_and_classes(weights: Path, tmp_path: Path) -> None:
    reader = cached(weights, tmp_path / "c.zarr", *LARGER, OTHER_ORDER[0])
    items = DistillationSet.from_cache(reader.location)
    assert items[3][0].shape == (3, 8, 8)
    assert items[3][2].shape == (10,)


# a teacher without a classifier


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    timm = pytest.importorskip("timm", reason="needs timm, whose networks have no classifier if asked")
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "backbone.pth"
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), file)
    return file


FEATURES = ("teacher=timm:test_resnet", "teacher.options={num_classes: 0}", "teacher.size=32", "student=resnet8")


@pytest.fixture(scope="module")
def embeddings(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> LogitReader:
    return cached(backbone, tmp_path_factory.mktemp("caches") / "c.zarr", *FEATURES)


def test_a_backbone_is_cached_by_its_embedding(embeddings: LogitReader) -> None:
    assert list(embeddings.manifest.signals) == ["embedding"]
    assert "teacher_test_top1" not in embeddings.manifest.provenance["embedding"]


@pytest.mark.parametrize("objective", ["rkd", "crd"])
def test_embeddings_teach(objective: str, embeddings: LogitReader, tmp_path: Path) -> None:
    experiment = experiment_of(*FEATURES, f"objective={objective}", "objectives.crd.negatives=10")
    result = train_student(experiment, embeddings.location, tmp_path / "run", data=DATA, cpu=True)
    assert result.distillation is not None


@pytest.mark.parametrize("objective", ["dhkd", "kd", "dist"])
def test_a_backbone_gives_no_logits(objective: str, embeddings: LogitReader, backbone: Path, tmp_path: Path) -> None:
    for cache, more in ((embeddings.location, ()), (None, ("teacher.live=true",))):
        experiment = experiment_of(*FEATURES, *more, f"objective={objective}")
        with pytest.raises(ConfigError) as error:
            train_student(experiment, cache, tmp_path / "run", data=DATA, teacher=backbone, cpu=True)
        assert "expected a teacher with a classifier" in one_line(error)


def test_what_a_backbone_can_not_do_is_one_line(backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="classifier"):
        cached(backbone, tmp_path / "c.zarr", *FEATURES, "cache.signals=[logits]")
    with pytest.raises(DhkdError, match="classifier"):
        evaluate_network(experiment_of(*FEATURES), backbone, "teacher", data=DATA, cpu=True)
    experiment = experiment_of(*FEATURES, "teacher.classes=[0,1,2,3,4,5,6,7,8,9]")
    images = images_of(experiment, "train", DATA)
    with pytest.raises(ConfigError, match="expected a teacher with a classifier, timm:test_resnet gives features"):
        trained_teacher(experiment, images, backbone, DATA)


# weights in several files


def sharded(folder: Path, change: Callable[[dict[str, object]], object] = lambda index: None) -> tuple[Path, State]:
    """A resnet8 in two files and an index, which `change` may change."""
    torch.manual_seed(5)
    state = {name: tensor.clone() for name, tensor in build_network("resnet8", 10).state_dict().items()}
    names, parts = list(state), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    weight_map = {name: parts[number % 2] for number, name in enumerate(names)}
    for part in parts:
        save_file({name: state[name] for name in names if weight_map[name] == part}, folder / part)
    index: dict[str, object] = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    change(index)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model.safetensors.index.json", state


def test_weights_in_several_files_are_read_as_one(tmp_path: Path) -> None:
    index, state = sharded(tmp_path)
    read = read_weights(index)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
    result = evaluate_network(experiment_of(), index, "teacher", data=DATA, cpu=True)
    assert result.weights == str(index)


def moved(index: dict[str, object], **places: str) -> None:
    index["weight_map"] = {**index["weight_map"], **places}  # type: ignore[dict-item]


# What is wrong with an index, and what the one line says.
UNFIT_INDEX: dict[str, tuple[Callable[[dict[str, object]], object], str]] = {
    "a file that is missing": (lambda index: moved(index, extra="model-3.bin"), "1 are missing (model-3.bin); copy or"),
    "a file elsewhere": (lambda index: moved(index, extra="../secret.bin"), "beside this index, got '../secret.bin'"),
    "an absolute place": (lambda index: moved(index, extra="/etc/passwd"), "beside this index, got '/etc/passwd'"),
    "a name that is missing": (
        lambda index: moved(index, extra="model-00001-of-00002.safetensors"),
        "expected extra in model-00001-of-00002.safetensors, as this index says, found none",
    ),
    "itself": (lambda index: moved(index, extra="model.safetensors.index.json"), "got a JSON file"),
    "a number": (lambda index: moved(index, extra=5), "beside this index, got '5'"),  # type: ignore[arg-type]
    "no map": (lambda index: index.update(weight_map=[1]), "got a JSON file"),
    "nothing": (lambda index: index.update(weight_map={}), "expected tensors by name, found none"),
}


@pytest.mark.parametrize("kind", UNFIT_INDEX)
def test_an_index_that_does_not_fit(kind: str, tmp_path: Path) -> None:
    change, says = UNFIT_INDEX[kind]
    index, _ = sharded(tmp_path, change)
    with pytest.raises(WeightsError) as error:
        read_weights(index)
    assert says in one_line(error)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    index, _ = sharded(tmp_path)
    part = tmp_path / "model-00002-of-00002.safetensors"
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(WeightsError) as error:
        read_weights(index)
    assert "model-00002-of-00002.safetensors: the file is damaged" in one_line(error)


# a student's first weights


def begun(experiment: Experiment) -> Mapping[str, Tensor]:
    objective = objective_of(experiment)
    images = images_of(experiment, "train", DATA)
    setting = setting_of(experiment, experiment.student, images, objective)
    return student_of(objective, setting, beginning_of(experiment, images)).backbone.state_dict()


def first_weights(file: Path | str, *overrides: str) -> Experiment:
    return experiment_of("student=resnet8", f"student.weights={file}", *overrides)


def test_a_student_begins_with_weights_of_its_classes(weights: Path) -> None:
    state, given = begun(first_weights(weights)), read_weights(weights)
    assert all(torch.equal(state[name], tensor) for name, tensor in given.items())


@pytest.mark.parametrize("lacking", [False, True])
def test_a_classifier_of_other_classes_is_new(forty: Path, tmp_path: Path, lacking: bool) -> None:
    given = torch.load(forty)["model"]
    file = forty
    if lacking:
        file = tmp_path / "body.pth"
        torch.save({"model": {name: t for name, t in given.items() if not name.startswith("fc.")}}, file)
    state, fresh = begun(first_weights(f"{file}::model")), begun(experiment_of("student=resnet8"))
    assert all(torch.equal(state[name], tensor) for name, tensor in given.items() if not name.startswith("fc."))
    assert torch.equal(state["fc.weight"], fresh["fc.weight"]), "as the seed draws it"
    assert not torch.equal(state["conv1.weight"], fresh["conv1.weight"])


def test_simkd_begins_with_the_students_own_layers(weights: Path) -> None:
    experiment = first_weights(weights, "objective=simkd")
    objective, images = objective_of(experiment), images_of(experiment, "train", DATA)
    teacher = build_network("resnet8", 10).eval()
    setting = setting_of(experiment, experiment.student, images, objective, teacher)
    backbone = student_of(objective, setting, beginning_of(experiment, images)).backbone
    assert isinstance(backbone, ProjectedNetwork)
    assert torch.equal(backbone.trunk.state_dict()["conv1.weight"], read_weights(weights)["conv1.weight"])
    assert torch.equal(backbone.head.weight, teacher.head.weight)  # type: ignore[arg-type]


def test_what_is_begun_with_is_said_recorded_and_compared(
    forty: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "first.pth"
    file.write_bytes(forty.read_bytes())
    experiment = first_weights(file, "objective=ce")
    with caplog.at_level(logging.INFO, logger="dhkd"):
        train_student(experiment, None, tmp_path / "run", data=DATA, cpu=True)
    assert (
        f"begins with the weights of {file}; their classifier of 40 classes is replaced by a new one of 10"
        in caplog.text
    )
    torch.manual_seed(9)
    torch.save(build_network("resnet8", 40).state_dict(), file)
    with pytest.raises(RunMismatch, match="student_weights"):
        train_student(experiment, None, tmp_path / "run", data=DATA, cpu=True, resume=True)
    file.write_bytes(forty.read_bytes())
    assert train_student(experiment, None, tmp_path / "run", data=DATA, cpu=True, resume=True).epochs == 1


def test_students_side_by_side_begin_with_different_weights(weights: Path, forty: Path, tmp_path: Path) -> None:
    experiments = {
        tmp_path / name: first_weights(file, "objective=ce", "student.lr=1e-12")
        for name, file in (("one", weights), ("two", f"{forty}::model"))
    }
    outcomes = train_students(experiments, None, data=DATA, cpu=True)
    assert not any(isinstance(outcome, DhkdError) for outcome in outcomes.values())
    for out, given in ((tmp_path / "one", read_weights(weights)), (tmp_path / "two", torch.load(forty)["model"])):
        trained = read_weights(out / "student.safetensors")
        assert torch.allclose(trained["conv1.weight"], given["conv1.weight"], atol=1e-6)
    assert set(axes_of(require_runs(tmp_path))) == {"weights"}, "reports tell them apart by the setting"


@pytest.mark.parametrize(
    ("architecture", "says"),
    [("resnet14", "of another architecture"), ("vgg8", "of another architecture"), ("wrn_16_1", "tensors are missing")],
)
def test_weights_of_another_network_are_refused(architecture: str, says: str, forty: Path) -> None:
    experiment = experiment_of(f"student={architecture}", f"student.weights={forty}")
    with pytest.raises(WeightsError) as error:
        beginning_of(experiment, images_of(experiment, "train", DATA))
    assert says in one_line(error)


@pytest.mark.parametrize("place", ["/etc/passwd", "~/.ssh/id_rsa", "../w.pth", "a/../../w.pth", "https://a.b/w.pth"])
def test_a_strangers_preset_names_no_weights_elsewhere(place: str, tmp_path: Path) -> None:
    text = Path(load_experiment.__code__.co_filename).with_name("presets") / "digits.yaml"
    preset = tmp_path / "p.yaml"
    preset.write_text(text.read_text().replace("student:\n", f"student:\n  weights: {place}\n", 1))
    with pytest.raises(ConfigError, match=r"student\.weights: expected a path below the current folder"):
        load_experiment(str(preset), SETTINGS)
    assert load_experiment(str(preset), [*SETTINGS, "student.weights=w.pth"]).student.weights == "w.pth"
    assert load_experiment("digits", [f"student.weights={place}"]).student.weights is not None


def test_missing_weights_are_one_line(tmp_path: Path) -> None:
    for place, says in ((tmp_path / "none.pth", "expected a file, found none"), ("packaged", "no packaged weights")):
        experiment = first_weights(place)
        with pytest.raises(DhkdError) as error:
            beginning_of(experiment, images_of(experiment, "train", DATA))
        assert says in one_line(error)


# FILE::KEY, wherever weights are named


def test_one_of_several_networks_in_a_file_is_taken_everywhere(weights: Path, tmp_path: Path) -> None:
    state = read_weights(weights)
    other = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    file = tmp_path / "both.pth"
    torch.save({"teacher": state, "other": other}, file)
    named, experiment = Path(f"{file}::teacher"), experiment_of()
    sha256 = evaluate_network(experiment, weights, "teacher", data=DATA, cpu=True).sha256
    assert evaluate_network(experiment, named, "teacher", data=DATA, cpu=True).sha256 == sha256
    reader = cached(named, tmp_path / "c.zarr")
    assert reader.manifest.signals["logits"].teacher["sha256"] == sha256
    assert verify(reader.location, experiment, data=DATA, teacher=named, rows=4, cpu=True).live is not None
    live = experiment_of("teacher.live=true", "objective=kd", "student=resnet8", f"student.weights={named}")
    train_student(live, None, tmp_path / "run", data=DATA, teacher=named, cpu=True)
    with pytest.raises(WeightsError, match="name one of them"):
        evaluate_network(experiment, file, "teacher", data=DATA, cpu=True)
