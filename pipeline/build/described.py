"""What a file with a network says about it: everything that is needed to use the network on an image.

The same entries are in the metadata of weights (.safetensors), in the properties of ONNX files, and in files of
torch.export. Files that other programs wrote lack some of them, as weights of earlier versions do.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dhkd.configs.load import RUN_CONFIG, load_experiment
from dhkd.configs.schema import Experiment
from dhkd.data.errors import WeightsError
from dhkd.data.images.base import PerChannel
from dhkd.data.images.resizing import INTERPOLATIONS, Resizing
from dhkd.data.recipes import RECIPES
from dhkd.data.recipes.base import Recipe
from dhkd.data.recipes.preparation import LARGEST, Preparation, preparation_from, preparation_of
from dhkd.data.render import Normalization, Renderer
from dhkd.data.sources import SOURCES
from dhkd.pipeline.build.data import recipe_of
from dhkd.pipeline.build.networks import class_names_in, mean_std_in
from dhkd.pipeline.build.teacher import ROLE, teacher_recipe_of

PREPARATION = "preparation"  # the metadata key for how images become pixels
RESIZING = "resizing"  # the metadata key for a size to which the pixels are resized after that
NEEDED = ("architecture", "num_classes")


@dataclass(frozen=True)
class Described:
    """A network as its file describes it, and the file's `metadata` as it is.

    `mean` and `std` are of each channel of the network's input; full scale is 1. `preparation` is None if it isn't
    recorded. The pixels are then resized by `resizing`, if that is not None.
    """

    architecture: str
    num_classes: int
    class_names: tuple[str, ...]
    mean: PerChannel
    std: PerChannel
    preparation: Preparation | None
    resizing: Resizing | None
    metadata: Mapping[str, str]

    @property
    def normalize(self) -> Normalization:
        """The normalisation of pixels to the network's input."""
        return Normalization(self.mean, self.std, self.resizing)

    def prepared(self, preparation: Preparation) -> "Described":
        """Return the same network with this preparation, which its metadata then says as well."""
        metadata = {**self.metadata, PREPARATION: json.dumps(preparation.plain(), sort_keys=True)}
        return replace(self, preparation=preparation, metadata=metadata)


def described(metadata: Mapping[str, str], where: str) -> Described:
    """Read what a file's metadata says about its network; `where` names the file in errors.

    Raises `WeightsError` if it doesn't say all that a prediction needs besides the preparation.
    """
    require_described(metadata, where)
    mean_std = mean_std_in(metadata, where)
    if mean_std is None:
        raise WeightsError(f"{where}: expected weights written by dhkd, it does not say its mean and std")
    if not all(map(math.isfinite, (*mean_std[0], *mean_std[1]))) or min(mean_std[1]) <= 0:
        raise WeightsError(f"{where}: expected a finite mean and a positive std in its metadata, got others")
    return Described(
        architecture=metadata["architecture"],
        num_classes=num_classes_in(metadata, where),
        class_names=class_names_in(metadata, where),
        mean=mean_std[0],
        std=mean_std[1],
        preparation=preparation_from(_plain(metadata, PREPARATION)),
        resizing=_resizing(_plain(metadata, RESIZING), where),
        metadata=metadata,
    )


def require_described(metadata: Mapping[str, str], where: str) -> None:
    """Raise `WeightsError` unless the metadata says which network the file is of."""
    missing = [key for key in NEEDED if key not in metadata]
    if missing:
        raise WeightsError(f"{where}: expected weights written by dhkd, it does not say its {' and '.join(missing)}")


def num_classes_in(metadata: Mapping[str, str], where: str) -> int:
    """Return the number of classes that a file's metadata says."""
    try:
        return int(metadata["num_classes"])
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{where}: expected a number of classes in its metadata, got another text") from error


def metadata_of_use(renderer: Renderer, normalize: Normalization) -> dict[str, str]:
    """Return the metadata that says how to turn images into a network's input, as is done here with the test images."""
    images, resizing = renderer.images, normalize.resizing
    preparation = preparation_of(renderer.recipe, images.shape, images.channels)
    size = {} if resizing is None else {"size": resizing.size, "interpolation": resizing.interpolation}
    return {
        **({PREPARATION: json.dumps(preparation.plain(), sort_keys=True)} if preparation else {}),
        **({RESIZING: json.dumps(size, sort_keys=True)} if size else {}),
    }


def experiment_of(run: Path) -> Experiment | None:
    """Load the settings of the run in a folder; return None for a file, and for a folder of weights alone."""
    return load_experiment(str(run)) if (run / RUN_CONFIG).is_file() else None


def role_of(weights: Path) -> str:
    """Return whether a weights file of a run, by its name, is of a teacher or of a student."""
    return ROLE if weights.stem.startswith(ROLE) else "student"


def test_recipe_of(experiment: Experiment, role: str) -> Recipe:
    """Return the recipe for the test images of a run's network."""
    recipe = teacher_recipe_of(experiment) if role == ROLE else None
    return (recipe or recipe_of(experiment.views)).at_test()


def preparation_by_settings(experiment: Experiment, role: str) -> Preparation | None:
    """Return the preparation that a run's settings tell, for weights of earlier versions, which don't record it.

    It is None where it depends on the size of the data set's images, and that is known only from its files, and for a
    recipe that a user wrote.
    """
    if experiment.views.kind not in RECIPES:
        return None
    source = SOURCES.get(experiment.data.source)
    pixels = source.size.pixels if source is not None and source.size is not None else None
    return preparation_of(
        test_recipe_of(experiment, role), None if pixels is None else (pixels, pixels), experiment.data.channels or 3
    )


def _plain(metadata: Mapping[str, str], key: str) -> object:
    try:
        return json.loads(metadata.get(key, "null"))
    except (ValueError, RecursionError):
        return None


def _resizing(plain: object, where: str) -> Resizing | None:
    if plain is None:
        return None
    if isinstance(plain, dict) and plain.keys() == {"size", "interpolation"}:
        size, interpolation = plain["size"], plain["interpolation"]
        if type(size) is int and 1 <= size <= LARGEST and interpolation in INTERPOLATIONS:
            return Resizing(size, interpolation)
    raise WeightsError(f"{where}: expected a size and an interpolation as {RESIZING} in its metadata, got another text")
