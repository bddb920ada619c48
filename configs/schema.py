"""The schema of a preset, as frozen, validated models.

A section given as a single word or number sets its main field: `student: resnet8` is `student: {architecture:
resnet8}`. The schema does not check the names of sources, networks and objectives; pipeline.build looks them up. The
module is long because it holds every setting, each with its limits and its description.
"""

import math
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from dhkd.configs.places import BelowRoot, Outputs
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

Precision = Literal["auto", "float32", "bf16", "fp16"]
MAX_SEED = 2**63 - 1
MAX_BATCH = 2**20

# A softmax at a temperature outside these bounds is a 0-1 choice or uniform, and float32 may overflow or vanish.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3


def is_bare(value: object) -> bool:
    """Return whether a value given for a section is a word or number, and so the value of the section's main field."""
    return isinstance(value, str | int | float) and not isinstance(value, bool)


class Section(BaseModel):
    """A part of a preset; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    main_field: ClassVar[str | None] = None

    @model_validator(mode="before")
    @classmethod
    def _bare_word(cls, value: Any) -> Any:
        return {cls.main_field: value} if cls.main_field and is_bare(value) else value

    @model_serializer(mode="wrap")
    def _without_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the settings of `_later` that are not set, and those that have no effect."""
        fields, unused = type(self).model_fields, self.without_effect()
        return {
            key: value
            for key, value in dump(self).items()
            if key not in unused and (value is not None or key not in fields or not fields[key].json_schema_extra)
        }

    def without_effect(self) -> Collection[str]:
        """Return the settings that have no effect beside the others, which are not recorded."""
        return ()


Share = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(ge=1e-3, le=1)]  # one grey level is 0.004


def _per_channel(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) not in (1, 3):
        raise PydanticCustomError("per_channel", "expected 3 numbers, or 1 for grey images")
    return values


Means = Annotated[tuple[Share, ...], AfterValidator(_per_channel)]
Spreads = Annotated[tuple[Spread, ...], AfterValidator(_per_channel)]


def _finite(value: Any) -> Any:
    """Return the value unless it contains a number that is not finite.

    A NaN is unequal to itself, so a run with a NaN in its settings could never be resumed.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("finite_number", "expected finite numbers")
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for part in inner:
        _finite(part)
    return value


# Keys and values that this schema does not know; the only check is that all numbers in them are finite.
Free = Annotated[Mapping[str, Any], AfterValidator(_finite)]


def _later(description: str, **limits: Any) -> Any:
    """Return the field of a setting that is recorded only where it is set.

    So a run from before the setting existed has the same record as one without it, and can be resumed.
    """
    return Field(None, description=description, json_schema_extra={"recorded": "if set"}, **limits)


class Data(Section):
    """The data set. Each source takes some of the keys from `train` to `options`, and refuses the others."""

    main_field = "source"
    source: str = Field(
        description="where images and labels come from, such as cifar100 or image-folder; see docs/data.md"
    )
    limit: int | None = Field(None, ge=2, description="use only this many training samples, the first ones")
    test_limit: int | None = Field(None, ge=1, description="use only this many test samples, the first ones")
    train: BelowRoot | None = Field(
        None, description="folder with one subfolder per class, or pattern of shards, relative to the data root"
    )
    test: BelowRoot | None = Field(None, description="the same for the test split")
    num_classes: int | None = Field(None, ge=2, le=10**6, description="required for shards, which do not record it")
    classes: str | None = _later(
        "order of the class folders: name (null, too), number, or a file below the data root that lists one class in"
        " each line; shards: such a file, if labels are names"
    )
    label: str | None = _later("member of a shard's sample that holds the label: cls (null, too), txt, json:FIELD, …")
    first_label: int | None = _later("label of the first class in shards; null: 0", ge=0, le=MAX_SEED)
    follow_links: bool | None = _later("whether to follow links in class folders that lead outside of the data root")
    levels: tuple[float, float] | None = _later(
        "values of black and white in images of more than 8 bits; null: 0 and 65535 for 16 bits, others are refused"
    )
    max_megapixels: float | None = _later("largest image that is decoded; null: 179", gt=0, le=10**6)
    max_metadata_mb: float | None = _later("largest text or profile of a PNG that is read; null: 16", gt=0, le=10**4)
    options: Free | None = _later(
        "settings that only this source has, such as the columns of image and label; see docs/data.md"
    )
    labels: Literal["none", "test"] | None = _later(
        "none: use no labels; test: only those of the test images; null: all that the source has"
    )
    val_fraction: float | None = _later(
        "share of each class of the training split to hold out and test on, in place of the test split", gt=0, lt=1
    )
    val_seed: int | None = _later("seed of the choice of held-out samples; null: 0", ge=0, le=MAX_SEED)
    channels: Literal[1, 3] | None = _later("1: grey images; null: 3, and grey images are repeated in 3 channels")
    mean: Means | None = Field(None, description="of each channel, 0 to 1; null: the source's default")
    std: Spreads | None = Field(None, description="of each channel, 0 to 1; null: the source's default")

    @model_validator(mode="after")
    def _seed_of_a_part(self) -> "Data":
        if self.val_seed is not None and self.val_fraction is None:
            raise ValueError("val_seed: expected val_fraction beside it, got none; set both")
        return self


class Views(Section):
    """The recipe, i.e. how a view is drawn; part of a cache's identity.

    `kind` names the recipe, and every other key is one of its parameters, which the recipe checks. crop-flip takes
    `padding`, and needs images of equal size. random-resized-crop takes `size`, `scale`, `ratio`, `test_size`, the
    side of test images (null: size), and `test_resize`, the shorter side to which a test image is resized before its
    centre is cropped (null: test_size · 256 / 224). `mix` mixes two images, by mixup or CutMix. A recipe may take keys
    that are not listed here. Those of pixel operations are in docs/augmentation.md.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_finite)]]  # plain YAML values

    kind: str = Field("crop-flip", description="name of the recipe: crop-flip, random-resized-crop, or code of yours")
    flip: bool | None = Field(None, description="whether half of the views are mirrored; dhkd's own recipes require it")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="of the views, so part of the cache; training has its own seed")
    padding: int | None = Field(None, ge=0, le=64, description="pixels added on each side")
    size: int | None = Field(None, ge=1, le=4096, description="side of the crop, in pixels")
    scale: tuple[float, float] = Field(
        (0.08, 1.0), description="smallest and largest area of the crop, as a fraction of the image's area"
    )
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="smallest and largest width / height of the crop")
    test_resize: int | None = Field(
        None, ge=1, le=8192, description="shorter side of a test image before its centre is cropped; see above"
    )
    decoder: Literal["pillow", "scaled"] | None = _later(
        "scaled: of random-resized-crop, JPEG files are decoded at the smallest size that a view needs; null: pillow"
    )

    @property
    def parameters(self) -> Mapping[str, object]:
        """The recipe's arguments: the seed, and every other key that differs from its default."""
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        differing = {name: value for name, value in self if name not in defaults or value != defaults[name]}
        differing.pop("kind", None)
        return {**differing, "seed": self.seed}


class Ema(Section):
    """An exponential moving average of the network's weights, kept and tested beside them; a bare number is `decay`."""

    main_field = "decay"
    decay: float = Field(ge=0, lt=1, description="share of the average that an update keeps, such as 0.9999")
    warmup: bool = Field(False, description="let update k keep at most 1 - k^(-2/3), so that the average starts fast")
    every: int = Field(1, ge=1, description="update the average at every N-th step, from the first")


class EarlyStopping(Section):
    """End training when the held-out part of the data shows no gain any more; a bare number is `patience`."""

    main_field = "patience"
    patience: int = Field(ge=1, le=10**6, description="epochs in a row without a gain after which training ends")
    min_delta: float = Field(0, ge=0, le=100, description="a gain is more than this above the best, in percent")
    monitor: Literal["top1", "ema_top1"] = Field("top1", description="of the weights, or of their average (ema)")


class Optimizer(Section):
    """An optimizer by name; every other key is one of its options, which the optimizer checks."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_finite)]]  # plain YAML values

    main_field = "name"
    name: str = Field(min_length=1, description="of torch, timm:NAME, muon, or code of yours; see docs/training.md")

    @property
    def options(self) -> Mapping[str, object]:
        """The optimizer's arguments besides the settings beside it, such as lr and weight_decay."""
        return dict(self.__pydantic_extra__)


SGD = "sgd"  # the default optimizer, which has momentum and nesterov among the settings of `Training`


class Training(Section):
    """How one network is trained: its optimizer and schedule.

    `batch_size` is the number of samples in an update, in all compute processes together.
    """

    main_field = "architecture"
    architecture: str = Field(
        description="the network: one of dhkd's, torchvision:NAME, timm:NAME, or code of yours; see docs/networks.md"
    )
    options: Free | None = _later("keyword arguments of the network's builder, such as img_size or drop_path_rate")
    head: str | None = _later("path of the classifier, if it isn't found; none: outputs are features", min_length=1)
    maps: tuple[str, ...] | None = _later(
        "paths of modules whose outputs are compared as maps (stage1, … in our networks); auto: those that timm names",
        min_length=1,
    )
    epochs: int = Field(ge=1, le=10**6, description="number of times that every training sample is shown")
    batch_size: int = Field(
        64, ge=2, le=MAX_BATCH, description="samples in an update, in all compute processes together"
    )
    # A rate that is too high ends in a loss that is not finite. Beyond these bounds float32 overflows or nothing moves.
    lr: float = Field(ge=1e-12, le=1e30, description="the highest learning rate")
    optimizer: Optimizer | None = _later(
        "a name with options, such as {name: adamw, betas: [0.9, 0.95]}; null: sgd; see docs/training.md"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd; other optimizers have it among their options")
    nesterov: bool = Field(False, description="of sgd, too")
    weight_decay: float = Field(5e-4, ge=0, le=10, description="of any optimizer that has one")
    no_decay: Literal["norms-and-biases"] | None = _later(
        "norms-and-biases: no weight decay for one-dimensional parameters, biases, and those that the network lists in"
        " no_weight_decay(); null: it applies to all parameters"
    )
    layer_decay: float | None = _later(
        "factor of the learning rate from each layer to the one before it; null: 1", gt=0, le=1
    )
    accumulate: int | None = _later("number of parts in which a batch is computed; null: 1", ge=1, le=MAX_BATCH // 2)
    lr_schedule: Literal["constant", "multistep", "cosine", "one-cycle", "linear", "polynomial"] = Field(
        "multistep", description="how the learning rate changes over the epochs; see docs/training.md"
    )
    milestones: tuple[int, ...] = Field(
        (), description="rising epochs, from 0, at whose start the learning rate is multiplied by gamma"
    )
    gamma: float = Field(0.1, ge=1e-6, le=1, description="factor of the learning rate at each of the milestones")
    warmup_epochs: float = Field(0, ge=0, description="first epochs, in which the rate rises step by step")
    warmup_lr: float | None = _later("rate of the first step of the warm-up; null: just above 0", ge=0, le=1e30)
    min_lr: float | None = _later("rate at the end of a falling schedule; null: 0", ge=0, le=1e30)
    cooldown_epochs: float | None = _later("last epochs, in which the rate stays at min_lr; null: 0", gt=0)
    lr_power: float | None = _later("exponent of the polynomial schedule; null: 1", gt=0, le=100)
    clip_norm: float | None = Field(
        None, ge=1e-6, le=1e6, description="largest norm of an update's gradient; null: it is not clipped"
    )
    label_smoothing: float | None = _later(
        "share of the target that every cross-entropy spreads over all classes; null: 0", gt=0, lt=1
    )
    drop_path: float | None = _later(
        "largest probability of leaving out a residual branch, for networks that can; null: the network's own",
        ge=0,
        lt=1,
    )
    dropout: float | None = _later(
        "probability of dropping a feature before the classifier, for networks that can; null: the network's own",
        ge=0,
        lt=1,
    )
    ema: Ema | None = _later("keep an average of the weights as well: its decay, or decay, warmup and every")
    early_stopping: EarlyStopping | None = _later("end early: the patience, or patience, min_delta and monitor")
    precision: Precision = Field("auto", description="auto: bf16 if the hardware supports it, or else float32")
    channels: Literal[1, 3] | None = _later("input channels, to which images are converted; null: those of the images")
    compile: Literal["off", "reduce-overhead", "max"] = Field(
        "off", description="reduce-overhead: replay each step as a CUDA graph (GPU only); max: also compile the network"
    )
    checkpointing: bool | None = _later(
        "compute activations again in the backward pass, which saves memory and costs time; null: false"
    )
    keep_every: int | None = Field(
        None,
        ge=1,
        description="keep the weights of every N-th epoch in the run's folder, for reports over training",
    )

    @field_validator("early_stopping")
    @classmethod
    def _needs_an_average(cls, value: EarlyStopping | None, others: ValidationInfo) -> EarlyStopping | None:
        if value is not None and value.monitor == "ema_top1" and others.data.get("ema") is None:
            raise PydanticCustomError("monitor", "monitor ema_top1 expected the setting ema beside it, found none")
        return value

    @field_validator("checkpointing")
    @classmethod
    def _without_compile(cls, value: bool | None, others: ValidationInfo) -> bool | None:
        if value and others.data.get("compile", "off") != "off":
            raise PydanticCustomError(
                "checkpointing", "expected compile off beside it, which keeps what checkpointing computes again"
            )
        return value

    def without_effect(self) -> Collection[str]:
        """Return the options of SGD if another optimizer is named."""
        return () if self.optimizer is None or self.optimizer.name == SGD else ("momentum", "nesterov")

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {key: one for key, one in value.items() if one is not None or key not in ("momentum", "nesterov")}

    @field_validator("momentum", "nesterov")
    @classmethod
    def _of_sgd(cls, value: Any, others: ValidationInfo) -> Any:
        optimizer = others.data.get("optimizer")
        if optimizer is not None and optimizer.name != SGD:
            raise PydanticCustomError(
                "of_sgd",
                "expected none with optimizer {name}, whose options stand beside its name; leave it out, or set it to"
                " null if the preset sets it",
                {"name": optimizer.name},
            )
        return value

    @field_validator("maps", mode="before")
    @classmethod
    def _one_word(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("nesterov")
    @classmethod
    def _needs_momentum(cls, value: bool, others: ValidationInfo) -> bool:
        if value and others.data.get("momentum") == 0:
            raise PydanticCustomError("nesterov", "expected false without a momentum, which nesterov is a form of")
        return value

    @field_validator("milestones")
    @classmethod
    def _rising(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        # Those after the last epoch are allowed: a short run of a long preset has only the beginning of its schedule.
        if any(first >= second for first, second in pairwise((-1, *value))):
            raise PydanticCustomError(
                "milestones", "expected rising numbers, from 0, at the start of whose epochs the rate falls"
            )
        return value

    @field_validator("warmup_epochs")
    @classmethod
    def _not_longer_than_the_run(cls, value: float, others: ValidationInfo) -> float:
        # Epochs that are impossible themselves are missing here, and reported on their own.
        epochs = others.data.get("epochs", math.inf)
        if value > epochs:
            raise PydanticCustomError(
                "warmup_epochs", "expected at most epochs ({epochs}), in which the rate can rise", {"epochs": epochs}
            )
        if value > 0 and others.data.get("lr_schedule") == "one-cycle":
            raise PydanticCustomError("warmup_epochs", "expected 0 with one-cycle, which has a rise of its own")
        return value

    @field_validator("warmup_lr")
    @classmethod
    def _of_a_warmup(cls, value: float | None, others: ValidationInfo) -> float | None:
        if value is not None and others.data.get("warmup_epochs") == 0:
            raise PydanticCustomError("warmup_lr", "expected warmup_epochs above 0 beside it, which it begins")
        return value

    @field_validator("min_lr", "cooldown_epochs")
    @classmethod
    def _of_a_falling_schedule(cls, value: float | None, others: ValidationInfo) -> float | None:
        kind = others.data.get("lr_schedule")
        if value is not None and kind in ("constant", "multistep"):
            raise PydanticCustomError(
                "falling",
                "expected none with lr_schedule {kind}, which has no lowest rate; choose cosine or leave it out",
                {"kind": kind},
            )
        return value

    @field_validator("min_lr")
    @classmethod
    def _below_the_rate(cls, value: float | None, others: ValidationInfo) -> float | None:
        if value is not None and value > others.data.get("lr", math.inf):
            raise PydanticCustomError("min_lr", "expected at most lr ({lr})", {"lr": others.data["lr"]})
        return value

    @field_validator("cooldown_epochs")
    @classmethod
    def _after_the_fall(cls, value: float | None, others: ValidationInfo) -> float | None:
        if value is None:
            return value
        if others.data.get("min_lr", math.inf) in (None, 0):
            raise PydanticCustomError("cooldown_epochs", "expected min_lr above 0 beside it, the rate of these epochs")
        left = others.data.get("epochs", math.inf) - others.data.get("warmup_epochs", 0)
        if value > left:
            raise PydanticCustomError(
                "cooldown_epochs", "expected at most the {left} epochs after the warm-up", {"left": left}
            )
        return value

    @field_validator("lr_power")
    @classmethod
    def _of_polynomial(cls, value: float | None, others: ValidationInfo) -> float | None:
        kind = others.data.get("lr_schedule", "polynomial")
        if value is not None and kind != "polynomial":
            raise PydanticCustomError("lr_power", "expected none with lr_schedule {kind}", {"kind": kind})
        return value

    @field_validator("accumulate")
    @classmethod
    def _parts_of_two(cls, value: int | None, others: ValidationInfo) -> int | None:
        most = others.data.get("batch_size", MAX_BATCH) // 2
        if value is not None and value > most:
            raise PydanticCustomError(
                "accumulate",
                "expected at most {most}, so that each part has two of the batch_size rows",
                {"most": most},
            )
        return value


class Teacher(Training):
    """The network whose outputs are cached."""

    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="accept only a cache of this teacher")
    mean: Means | None = Field(
        None, description="channel means it was trained with; null: those of its weights, or else the data set's"
    )
    std: Spreads | None = Field(None, description="the same for the standard deviations")
    size: int | None = _later(
        "side, in pixels, of the views that the teacher is shown, if other than the student's", ge=1, le=4096
    )
    interpolation: Literal["bilinear", "bicubic"] | None = _later("how views are resized; null: bilinear")
    classes: Outputs | None = _later(
        "the names of its outputs, in order: a list, a file below the data root with one name in each line, or weights,"
        " torchvision or timm, if the names are there; or for each class of the data the number of its output, from 0"
    )
    allow_chance: bool | None = _later("cache a teacher whose test accuracy is that of guessing; null: false")
    live: bool = Field(
        False, description="run it in every step for the signals that the cache lacks, or for all without a cache"
    )

    @field_validator("interpolation")
    @classmethod
    def _of_a_size(cls, value: str | None, others: ValidationInfo) -> str | None:
        if value is not None and others.data.get("size") is None:
            raise PydanticCustomError("interpolation", "expected teacher.size as well, the size that pixels get")
        return value


class Student(Training):
    """The network that learns from the cache."""

    weights: str | None = _later(
        "weights to begin with: a file, FILE::KEY, a run's folder, or packaged[:TAG]; a classifier of other classes is"
        " replaced",
        min_length=1,
        max_length=4096,
    )

    view_schedule: Literal["independent", "cycle", "block"] = Field(
        "independent",
        description="memory holds: independent: all views; cycle: two views; block with window: a few blocks",
    )
    views: int | None = Field(None, ge=1, description="number of cached views to train on, the first ones; null: all")
    teacher: str | None = Field(
        None, description="name of a teacher in the cache; mean: the mean of all teachers; null: the unnamed teacher"
    )
    window: int | None = Field(
        None,
        ge=1,
        description="samples in a window: blocks are shuffled, then samples within each window; null: one window",
    )


class Codec(Section):
    """How the logits of an image are stored. Other teacher outputs are float32 if `kind` is float32, or else float16.

    top-k keeps the logits of the `k` most probable classes, and the summed probability of the other classes at
    `temperature`.
    """

    main_field = "kind"
    kind: Literal["float16", "float32", "int8", "top-k"] = Field(
        "float16", description="number format of the stored logits; see docs/cache.md"
    )
    k: int | None = Field(None, ge=1, description="number of logits to keep for each image")
    temperature: float | None = Field(
        None,
        ge=MIN_TEMPERATURE,
        le=MAX_TEMPERATURE,
        description="softmax temperature at which the probabilities of the other classes are summed",
    )

    @model_validator(mode="after")
    def _fields_of_kind(self) -> "Codec":
        given = (self.k is not None, self.temperature is not None)
        if given != ((True, True) if self.kind == "top-k" else (False, False)):
            raise ValueError("top-k takes k and temperature, the other codecs neither")
        return self


class Cache(Section):
    """The cache that `dhkd cache-teacher` writes. Signals are teacher outputs such as logits."""

    views: int | Literal["all"] = Field(
        "all", description="number of views of each image, at least 1; all: every view of a recipe that has so many"
    )
    signals: tuple[str, ...] = Field(
        ("logits",),
        min_length=1,
        description="logits, embedding, last_map, map2-before, …; cam, attention: all that cat-kd or at needs",
    )
    codec: Codec = Field(Codec(), description="how logits are stored: its kind, or kind, k and temperature")
    store: str = Field("zarr", description="storage format: zarr or webdataset")
    precision: Precision = Field("auto", description="of the teacher's forward pass; part of the cache's identity")
    batch_size: int = Field(256, ge=1, le=MAX_BATCH, description="images that the teacher sees at a time")
    views_at_once: int = Field(
        4, ge=1, le=1000, description="number of views to render each time an image file is decoded"
    )
    block_mb: float = Field(
        4, ge=1e-6, le=64, description="upper limit on the size of a block of the largest signal, in MiB"
    )

    @field_validator("views")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if not isinstance(value, str) and value < 1:
            raise PydanticCustomError("views", "expected at least 1, or all")
        return value


class Alignment(Section):
    """Gradient alignment: if the gradients of two groups of loss terms oppose each other, one gradient is projected.

    The gradient of the terms in `against` loses the component that opposes the gradient of the terms in `kept`. If
    `against` is null, it stands for all terms computed from logits that are not in `kept`.
    """

    kept: tuple[str, ...] = Field(("ce",), min_length=1, description="terms whose gradient stays as it is")
    against: tuple[str, ...] | None = Field(
        None, min_length=1, description="terms whose gradient is projected; null: all others that are of logits"
    )
    every: int = Field(
        1, ge=1, description="steps between updates of the projection coefficient; above 1: cheaper, but approximate"
    )


class Experiment(Section):
    """One preset: data set, views, teacher, cache and student, and a record of published and measured results."""

    description: str = Field(description="one line that says what the preset is for")
    data: Data
    views: Views
    teacher: Teacher
    cache: Cache = Cache()
    student: Student
    objective: str = Field("dhkd", description="a name, or a weighted sum such as dhkd + 0.5 * reviewkd")
    alignment: Alignment | None = Field(None, description="of gradients; null: the objective's default")
    objectives: Mapping[str, Free] = Field(
        default_factory=dict, description="options of each objective that differ from its defaults"
    )
    seed: int = Field(0, ge=0, le=MAX_SEED, description="of training: initial weights, order, choice of views, dropout")
    smoke: Free = Field(default_factory=dict, description="settings that --smoke applies, for a run of a few seconds")
    record: Free = Field(
        default_factory=dict,
        description="any keys; ours are commands, paper, parameters, published (top-1 in percent), measured, …",
    )
