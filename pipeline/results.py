"""The results of the commands as frozen values, and the one function that converts them to JSON.

The fields of a class are in the order of the JSON object's keys. The module is long because it holds the result of
every command. This module imports nothing heavy, so that the command
line can print the result of any command without loading torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from dhkd.data.errors import RunMismatch
from dhkd.data.notebook import ShownAsText
from dhkd.data.runs.measured import top1_name

# Metadata of a field, which `plain` reads.
INLINE = {"inline": True}  # the keys of the value replace the field's key, which is left out if the value is None
OMIT_NONE = {"omit_none": True}  # the key is left out if the value is None

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CacheSummary:
    """A summary of a cache. `row_bytes` counts the bytes of one sample's signals in one view."""

    path: str
    digest: str
    teacher: str | None
    teacher_sha256: str | None
    views: int
    samples: int
    classes: int
    signals: Mapping[str, str]  # from the signal's name to the kind of its codec
    row_bytes: int


@dataclass(frozen=True, kw_only=True)
class LiveDifferences:
    """The largest difference between random rows of a cache and a live forward pass, over all signals and by signal."""

    largest_difference_from_live: float
    differences_from_live: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class CachedTeacher(ShownAsText):
    """What `cache-teacher` did. Accuracies are in percent; `live` is None until the cache is complete.

    `rows_per_second` is None if no row was written; `teacher_top1` is None if the test images have no labels.
    """

    cache: CacheSummary
    complete: bool
    blocks_written: int
    blocks_repaired: int
    blocks_left_to_others: int
    rows_written: int
    seconds: float
    rows_per_second: float | None
    teacher_top1: float | None
    unreadable_files: list[str] | None = field(default=None, metadata=OMIT_NONE)
    processes: int
    versions: Mapping[str, str]
    live: LiveDifferences | None = field(default=None, metadata=INLINE)

    def __str__(self) -> str:
        rate = f", {self.rows_per_second:,.0f} rows/s" if self.rows_per_second else ""
        written = f"{self.blocks_written} blocks written in {self.seconds:.1f} s{rate}"
        if self.live is None:
            left = self.blocks_left_to_others
            return f"{self.cache.path}: not complete yet, {left} blocks are left to others; {written}"
        return (
            f"{self.cache.path}: complete, {self.cache.views} views of {self.cache.samples} samples; {written};"
            f" largest difference from a live forward {self.live.largest_difference_from_live:.2g}"
        )


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What a student learned from: its objective, the cache, and the signals of a live teacher.

    `cache` is None if no cache was used. `together` is how many students were trained side by side, this one included.
    """

    objective: str
    cache: CacheSummary | None
    live: list[str]
    together: int


@dataclass(frozen=True, kw_only=True)
class TrainedRun(ShownAsText):
    """The result of a finished run, as result.json holds it.

    Accuracies are in percent. `measured` is None for accuracy on the test split; otherwise it names what was measured:
    "val accuracy" on a held-out part, or "test agreement" or "val agreement" with the teacher. `seconds` is the sum
    over all parts of an interrupted run. The figures and the hash of `ema` are those of the average of the weights, and
    None if none was kept. If the run was stopped early, `planned_epochs` is how many epochs it might have had. If the
    run went on with another number of processes, `parts` says how many of them trained how many epochs, in order. A
    teacher's run has no `distillation`. `test_samples` is the number of images on which accuracy was measured; results
    of earlier versions lack it. `settings_sha256` is the hash of the settings in config.yaml with which the run
    was trained.
    """

    role: str
    architecture: str
    parameters: int
    epochs: int
    last_top1: float
    best_top1: float
    last_top5: float
    best_top5: float
    seconds: float
    samples_per_second: float
    last_ema_top1: float | None = field(default=None, metadata=OMIT_NONE)
    best_ema_top1: float | None = field(default=None, metadata=OMIT_NONE)
    last_ema_top5: float | None = field(default=None, metadata=OMIT_NONE)
    best_ema_top5: float | None = field(default=None, metadata=OMIT_NONE)
    planned_epochs: int | None = field(default=None, metadata=OMIT_NONE)
    parts: list[Mapping[str, int]] | None = field(default=None, metadata=OMIT_NONE)
    seed: int
    distillation: Distillation | None = field(default=None, metadata=INLINE)
    measured: str | None = field(default=None, metadata=OMIT_NONE)
    test_samples: int | None = field(default=None, metadata=OMIT_NONE)
    unreadable_files: list[str] | None = field(default=None, metadata=OMIT_NONE)
    sha256: str
    ema_sha256: str | None = field(default=None, metadata=OMIT_NONE)
    settings_sha256: str | None = field(default=None, metadata=OMIT_NONE)
    precision: str
    hardware: str
    processes: int
    versions: Mapping[str, str]

    def __str__(self) -> str:
        stopped = "" if self.planned_epochs is None else f" of {self.planned_epochs} (stopped early)"
        ema = "" if self.last_ema_top1 is None else f", of the average of weights {self.last_ema_top1:.2f} %"
        return (
            f"{self.architecture} after {self.epochs}{stopped} epochs,"
            f" {top1_name(self.measured)} {self.last_top1:.2f} % (best {self.best_top1:.2f}){ema},"
            f" top-5 {self.last_top5:.2f} %, {self.seconds:.1f} s"
        )

    @classmethod
    def from_json(cls, tree: Mapping[str, Any], where: str) -> "TrainedRun":
        """Convert the JSON that `plain` returned back to the result; `where` names the file in errors.

        Raises `RunMismatch` if the JSON is not such a result.
        """
        values = dict(tree)
        try:
            if values.get("role") == "student":
                names = [part.name for part in fields(Distillation)]
                distillation = {name: values.pop(name) for name in names if name in values}
                if distillation.get("cache") is not None:
                    distillation["cache"] = _of_keys(CacheSummary, distillation["cache"])
                values["distillation"] = _of_keys(Distillation, distillation)
            return _of_keys(cls, values)
        except (TypeError, ValueError) as error:
            raise RunMismatch(
                f"{where}: expected the result of a finished run ({error}); delete it and run again with --resume"
            ) from error


@dataclass(frozen=True, kw_only=True)
class Evaluated(ShownAsText):
    """Test accuracy, in percent, of a network; `weights` says where its weights come from.

    If something else was measured, `measured` names it, as in `TrainedRun`.
    """

    architecture: str
    weights: str
    sha256: str
    top1: float
    top5: float
    samples: int
    measured: str | None = field(default=None, metadata=OMIT_NONE)
    unreadable_files: list[str] | None = field(default=None, metadata=OMIT_NONE)
    precision: str
    versions: Mapping[str, str]

    def __str__(self) -> str:
        split = "val" if (self.measured or "").startswith("val") else "test"
        return (
            f"{self.weights}: {self.architecture}, {top1_name(self.measured)} {self.top1:.2f} %, top-5"
            f" {self.top5:.2f} % of {self.samples} {split} images ({self.precision})"
        )


@dataclass(frozen=True, kw_only=True)
class Compared:
    """How far the logits of a written file are from those of the network, over the images that both got.

    `images` says which these were; `top1_changed` counts those whose most probable class differs.
    """

    images: str
    samples: int
    largest_difference: float
    top1_changed: int


@dataclass(frozen=True, kw_only=True)
class Exported(ShownAsText):
    """A network that was written as one file; `metadata` is recorded in the file.

    `compared` is None for weights, which are not computed with. `card` is the path of the model card, if one was asked
    for.
    """

    file: str
    metadata: Mapping[str, str] = field(metadata=INLINE)
    parameters: int
    sha256: str
    compared: Compared | None = field(default=None, metadata=OMIT_NONE)
    card: str | None = field(default=None, metadata=OMIT_NONE)

    def __str__(self) -> str:
        line = f"{self.file}: {self.metadata['architecture']}, {self.parameters:,} parameters"
        if self.compared is not None:
            line += (
                f"; its logits for {self.compared.samples} {self.compared.images} differ by at most"
                f" {self.compared.largest_difference:.2g}"
            )
        return line if self.card is None else f"{line}; model card in {self.card}"


@dataclass(frozen=True, kw_only=True)
class LikelyClass:
    """A class and its probability, 0 to 1; `name` is None if the network's classes have no names."""

    number: int
    name: str | None = field(default=None, metadata=OMIT_NONE)
    probability: float

    def __str__(self) -> str:
        return str(self.number) if self.name is None else self.name


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most probable classes of an image, best first; `label` is the number of its true class, if it is known."""

    image: str
    label: int | None = field(default=None, metadata=OMIT_NONE)
    classes: list[LikelyClass]


@dataclass(frozen=True, kw_only=True)
class Predicted(ShownAsText):
    """The predictions of one network.

    `unreadable` maps the name of each image that could not be read to the reason. `top1` is the accuracy in
    percent, if the images have labels.
    """

    weights: str
    architecture: str
    precision: str
    predictions: list[Prediction]
    unreadable: Mapping[str, str]
    top1: float | None = field(default=None, metadata=OMIT_NONE)

    def __str__(self) -> str:
        lines = [
            f"{of_image.image}: {', '.join(f'{one} {100 * one.probability:.1f} %' for one in of_image.classes)}"
            for of_image in self.predictions
        ]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class SignalBounds:
    """Bounds on the error of stored logits, and of losses that are computed from them.

    `error` is the largest difference of a logit from what the teacher computed, `tail_mass` the largest probability
    that top-k keeps only as a sum (None for other codecs). `kl_at_4` and `binary_kl_at_2` bound the losses at these
    temperatures, without the factor τ². A row's top class can change only if its logit leads by at most `margin`.
    """

    error: float
    tail_mass: float | None
    kl_at_4: float
    binary_kl_at_2: float
    margin: float


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """What a cache holds, and how complete, large and exact it is.

    `bytes` is None until the cache has been complete for the first time.
    """

    summary: CacheSummary = field(metadata=INLINE)
    format: int
    store: str
    complete: bool
    complete_views: int
    complete_signals: list[str]
    blocks: int
    blocks_done: int
    rows_per_block: int
    bytes: int | None
    bounds: Mapping[str, SignalBounds]
    digests: Mapping[str, str]
    identity: Mapping[str, Any]  # JSON, as the manifest holds it
    provenance: Mapping[str, Any]  # JSON, too


@dataclass(frozen=True, kw_only=True)
class DamagedObject:
    """A damaged object of a cache; `block` is None for metadata, which belongs to no block."""

    key: str
    block: str | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What `verify` read, and the damaged objects.

    `rows_rendered` is None if no images were rendered again. `rows_recomputed` and `live` are None if the cache was not
    compared with a live teacher.
    """

    cache: CacheSummary
    objects: int
    bytes: int
    seconds: float
    damaged: list[DamagedObject]
    rows_rendered: int | None = field(default=None, metadata=OMIT_NONE)
    rows_recomputed: int | None = field(default=None, metadata=OMIT_NONE)
    live: LiveDifferences | None = field(default=None, metadata=INLINE)


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A cache that was written again in another store or codec."""

    cache: CacheSummary
    store: str
    blocks_written: int
    bytes: int
    bounds: Mapping[str, SignalBounds]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Shared(ShownAsText):
    """A folder with a cache or a run, to be pushed to a hub. `kind` is "cache" or "run"; a run has no `store`.

    `digest` is that of the cache, or the hash of the run's weights. `left_out` lists the settings and facts in which
    paths of this machine were shortened.
    """

    kind: str
    folder: str
    store: str | None = field(metadata=OMIT_NONE)
    digest: str
    files: int
    bytes: int
    left_out: list[str]

    def __str__(self) -> str:
        line = f"{self.folder}: {self.kind}, {self.files:,} files, {self.bytes / 1e6:,.1f} MB, ready to be pushed"
        shortened = f"; paths of this machine are left out of {', '.join(self.left_out)}" if self.left_out else ""
        return f"{line}{shortened}"


@dataclass(frozen=True, kw_only=True)
class Swept:
    """The state of all runs of a sweep: the names of the finished runs, and the reason for each failed run."""

    folder: str
    table: str
    runs: int
    finished: list[str]
    failed: Mapping[str, str]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ListedPreset:
    """A preset as the list of presets shows it.

    The last three fields come from the preset's record and are empty if the record lacks them: the number of parameters
    of each role's network, and the paper's accuracies in percent, by method.
    """

    name: str
    description: str
    data: str
    teacher: str
    student: str
    parameters: Mapping[str, int]
    published: Mapping[str, float]
    published_top5: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class DemoRun:
    """A run of the demo.

    `teacher_seconds_saved` is the time that a live teacher would have taken for a student; it is None for the teacher.
    """

    name: str
    teacher_seconds_saved: float | None
    run: TrainedRun = field(metadata=INLINE)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The demo's results and where they were written; each line of `reading` states a conclusion from the results.

    `picture` is None if matplotlib is not installed.
    """

    runs: list[DemoRun]
    cache: CachedTeacher
    picture: str | None
    folder: str
    seconds: float
    reading: list[str]


def plain(value: object) -> Any:
    """Convert a result to JSON values. A value that is JSON already comes back equal."""
    if is_dataclass(value) and not isinstance(value, type):
        tree: dict[str, Any] = {}
        for part in fields(value):
            content = plain(getattr(value, part.name))
            if "inline" in part.metadata:
                tree |= content or {}
            elif content is not None or "omit_none" not in part.metadata:
                tree[part.name] = content
        return tree
    if isinstance(value, Mapping):
        return {key: plain(content) for key, content in value.items()}
    if isinstance(value, list | tuple):
        return [plain(content) for content in value]
    return value


def _of_keys(kind: type[T], tree: Mapping[str, Any]) -> T:
    """Build an instance of the dataclass `kind` from `tree`; a field that is None by default may be missing.

    Raises `ValueError` for other missing fields and for unknown keys.
    """
    known = {part.name: part for part in fields(kind)}  # type: ignore[arg-type]  # T is one of the dataclasses above
    unknown = [key for key in tree if key not in known]
    missing = [name for name, part in known.items() if part.default is not None and name not in tree]
    if missing or unknown:
        raise ValueError(
            "; ".join(
                f"{what}: {', '.join(keys)}" for what, keys in (("missing", missing), ("unknown", unknown)) if keys
            )
        )
    return kind(**tree)
