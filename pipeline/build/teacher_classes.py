"""Finds the teacher's output for each class of the data set if the teacher has other classes or another order."""

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from dhkd.configs.places import NAMED_BY
from dhkd.configs.schema import Experiment
from dhkd.data.disk.user_cache import expanded
from dhkd.data.errors import ConfigError, WeightsError
from dhkd.data.images.base import Images
from dhkd.data.shown import printable_line, some_of
from dhkd.data.sources.shard_urls import is_remote
from dhkd.pipeline.data_options import DataOptions
from dhkd.stages.models.class_names import PACKAGED_NAMES

Output = tuple[int, ...]  # for each class of the data set, the number of the teacher's output

NAMES_LISTED = 3
LARGEST_LIST = 10**7  # characters
WHAT = "teacher.classes"


def outputs_of_classes(
    experiment: Experiment, images: Images, data: DataOptions, names_in_weights: Sequence[str] | None
) -> Output | None:
    """Return the number of the teacher's output for each class; None if it can't be known without the weights.

    `names_in_weights` are the names of outputs that the teacher's weights record; None if there are no weights. Raises
    `ConfigError` for settings that don't fit the data set.
    """
    names = names_of_outputs(experiment, data, names_in_weights)
    if names is not None:
        return _by_name(names, images)
    numbers = _numbers(experiment)
    if not numbers:
        return None
    if len(numbers) != images.num_classes:
        raise ConfigError(
            f"{WHAT}: expected {images.num_classes:,} numbers, the teacher's output for each class of {images.name},"
            f" got {len(numbers):,}; correct the list"
        )
    twice = [number for number, count in Counter(numbers).items() if count > 1]
    if twice:
        classes = [k for k, number in enumerate(numbers) if number == twice[0]]
        raise ConfigError(
            f"{WHAT}: expected an output of its own for each class, got {twice[0]} for the classes"
            f" {' and '.join(map(str, classes[:NAMES_LISTED]))}; correct the list"
        )
    return numbers


def names_of_outputs(
    experiment: Experiment, data: DataOptions, names_in_weights: Sequence[str] | None
) -> tuple[str, ...] | None:
    """Return the names of all the teacher's outputs, in order.

    Returns None if the setting gives no names, and if the names are in weights that were not given. Raises
    `ConfigError` for a file that can't be read, and `WeightsError` for weights that don't name their outputs.
    """
    setting = experiment.teacher.classes
    if setting == "weights":
        if names_in_weights is not None and not names_in_weights:
            raise WeightsError(
                f"{WHAT}: expected weights that name their outputs, as those of 'dhkd train-teacher' and torchvision's"
                f" do, got weights without names; list them in a file, and name it below --data-root"
            )
        return None if names_in_weights is None else tuple(names_in_weights)
    if isinstance(setting, str):
        if setting in PACKAGED_NAMES:
            return PACKAGED_NAMES[setting]()
        return _listed(Path("." if data.root is None or is_remote(data.root) else expanded(data.root)), setting)
    return None if setting is None or _numbers(experiment) else tuple(map(str, setting))


def require_outputs(outputs: Output, found: int, names: Sequence[str] | None, origin: str) -> None:
    """Raise `ConfigError` unless the setting fits a teacher with `found` outputs and the weights at `origin`."""
    if names is not None and len(names) != found:
        raise ConfigError(
            f"{WHAT}: expected {found:,} names, one for each output of {origin}, got {len(names):,}; correct the list"
        )
    beyond = [number for number in outputs if number >= found]
    if beyond:
        raise ConfigError(
            f"{WHAT}: expected numbers from 0 to {found - 1:,}, the outputs of {origin}, got {beyond[0]:,}; correct the"
            f" list"
        )


def _listed(root: Path, file: str) -> tuple[str, ...]:
    """Return the lines of a file below `root`. Empty lines count, since a line's position is an output's number."""
    path = root / file
    try:
        if not path.is_file():
            raise FileNotFoundError(2, "no such file" if not path.exists() else "not a file")
        if not path.resolve().is_relative_to(root.resolve()):
            raise ConfigError(f"{WHAT}: {path}: expected a file below --data-root, got a link that leads out of it")
        with path.open(encoding="utf-8-sig") as stream:
            text = stream.read(LARGEST_LIST + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(
            f"{WHAT}: {path}: expected {', '.join(NAMED_BY)}, a list, or a file with the name of one output in each"
            f" line, got: {reason}"
        ) from error
    if len(text) > LARGEST_LIST:
        raise ConfigError(f"{WHAT}: {path}: expected at most {LARGEST_LIST:,} characters, got more")
    lines = text.rstrip().split("\n")
    if lines == [""]:
        raise ConfigError(f"{WHAT}: {path}: expected the name of one output in each line, got an empty file")
    return tuple(line.strip() for line in lines)


def _numbers(experiment: Experiment) -> Output:
    setting = experiment.teacher.classes
    return tuple(number for number in setting or () if isinstance(number, int))


def _by_name(names: Sequence[str], images: Images) -> Output:
    """Return the position of each class's name among the names of the outputs.

    Names match if they differ only in case, spaces, hyphens and underscores.
    """
    if not images.class_names:
        raise ConfigError(
            f"{WHAT}: {images.name} doesn't say the names of its classes; list the teacher's output number for each"
            f" class instead, from 0, as in [4, 0, 2]"
        )
    places: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        places.setdefault(_folded(name), []).append(number)
    lacking = [name for name in images.class_names if _folded(name) not in places]
    if lacking:
        near = get_close_matches(lacking[0], names, n=1, cutoff=0.5)
        hint = f", whose nearest is {printable_line(near[0], 100)!r}" if near else ""
        raise ConfigError(
            f"{WHAT}: expected an output for each class of {images.name}, found none among {len(names):,} names for"
            f" {len(lacking):,} of {images.num_classes:,} classes ({some_of(lacking, NAMES_LISTED)}{hint}); correct the"
            f" names, or list the numbers of the outputs"
        )
    several = [name for name in images.class_names if len(places[_folded(name)]) > 1]
    if several:
        numbers = places[_folded(several[0])]
        raise ConfigError(
            f"{WHAT}: expected one output for each class of {images.name}, found {len(numbers)} named"
            f" {printable_line(several[0], 100)!r} (numbers {', '.join(map(str, numbers[:NAMES_LISTED]))}); list the"
            f" numbers of the outputs instead"
        )
    outputs = tuple(places[_folded(name)][0] for name in images.class_names)
    if len(set(outputs)) < len(outputs):
        raise ConfigError(
            f"{WHAT}: two classes of {images.name} differ only in case, spaces, hyphens or underscores; list the"
            f" numbers of the outputs instead"
        )
    return outputs


def _folded(name: str) -> str:
    return name.strip().casefold().replace("_", " ").replace("-", " ")
