"""What a preset says: frozen, validated models. Names of sources, networks and objectives are looked up by the builder.

A section given as a bare word sets its main field: `student: resnet8` is `student: {architecture: resnet8}`.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Precision = Literal["auto", "float32", "bf16", "fp16"]
MAX_SEED = 2**63 - 1


class Section(BaseModel):
    """A part of a preset; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    main_field: ClassVar[str | None] = None

    @model_validator(mode="before")
    @classmethod
    def _bare_word(cls, value: Any) -> Any:
        return {cls.main_field: value} if cls.main_field and isinstance(value, str) else value


Share = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(gt=0, le=1)]
Means = tuple[Share, Share, Share]
Spreads = tuple[Spread, Spread, Spread]


def _finite(value: Any) -> Any:
    """The same value, wherever pydantic doesn't look: NaN is unequal to itself, so a run with one is never the same."""
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("finite_number", "expected finite numbers")
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for each in inner:
        _finite(each)
    return value


Free = Annotated[Mapping[str, Any], AfterValidator(_finite)]


class Data(Section):
    """Which data set. `train`, `test` and `num_classes` are for files of one's own: image-folder, webdataset."""

    main_field = "source"
    source: str
    limit: int | None = Field(None, ge=2, description="keep only the first so many training samples")
    test_limit: int | None = Field(None, ge=1, description="keep only the first so many test samples")
    train: str | None = Field(None, description="folder of class folders, or pattern of shards, below the data root")
    test: str | None = Field(None, description="the same of the test split")
    num_classes: int | None = Field(None, ge=2, description="of shards, which don't say it")
    mean: Means | None = Field(None, description="of each channel, 0 to 1, instead of the source's own")
    std: Spreads | None = Field(None, description="of each channel, 0 to 1, instead of the source's own")


class Views(Section):
    """How a view is drawn; part of a cache's identity.

    Every key beside the kind is a parameter of that recipe, which checks it. crop-flip takes `padding`, and all images
    of one size; random-resized-crop takes `size`, `scale` and `ratio`, and `test_resize`, the shorter side of a test
    image before its centre is cropped (null: size · 256 / 224). A recipe may take keys that are not listed here.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_finite)]]  # plain values out of YAML

    kind: str = "crop-flip"
    flip: bool | None = None
    seed: int = Field(0, ge=0, le=MAX_SEED, description="belongs to the cache; the experiment has its own")
    padding: int | None = Field(None, ge=0, le=64, description="pixels of zeros on each side")
    size: int | None = Field(None, ge=1, le=4096, description="pixels of a side")
    scale: tuple[float, float] = Field((0.08, 1.0), description="smallest and largest area, relative to the image's")
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="smallest and largest width / height")
    test_resize: int | None = Field(None, ge=1, le=8192)

    @property
    def parameters(self) -> Mapping[str, object]:
        """What the recipe is built with: the seed, and every other key that differs from its default."""
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        differing = {name: value for name, value in self if name not in defaults or value != defaults[name]}
        differing.pop("kind", None)
        return {**differing, "seed": self.seed}


class Training(Section):
    """How one network is trained: SGD and its schedule. The batch size is that of all processes together."""

    main_field = "architecture"
    architecture: str
    epochs: int = Field(ge=1)
    batch_size: int = Field(64, ge=2)
    lr: float = Field(gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(5e-4, ge=0)
    lr_schedule: Literal["constant", "multistep", "cosine", "one-cycle"] = "multistep"
    milestones: tuple[int, ...] = Field((), description="epochs, from 0, that begin with the rate × gamma")
    gamma: float = Field(0.1, gt=0)
    warmup_epochs: float = Field(0, ge=0)
    clip_norm: float | None = Field(None, gt=0)
    precision: Precision = "auto"
    compile: Literal["off", "reduce-overhead", "max"] = Field(
        "off", description="reduce-overhead: a GPU replays a step as one graph; max: the network is compiled as well"
    )
    keep_every: int | None = Field(
        None, ge=1, description="epochs between weights that are kept in the run's folder, for reports over training"
    )


class Teacher(Training):
    """The network that is cached."""

    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="accept only a cache of this teacher")
    mean: Means | None = Field(None, description="what it was trained with, where that isn't the data set's")
    std: Spreads | None = Field(None, description="the same")
    live: bool = Field(False, description="run it in every step, for signals that the cache lacks, or without a cache")


class Student(Training):
    """The network that learns from the cache."""

    view_schedule: Literal["independent", "cycle", "block"] = Field(
        "independent", description="independent needs the whole cache in memory, cycle one view at a time, block blocks"
    )
    views: int | None = Field(None, ge=1, description="train on so many of the cached views, the first; null: on all")
    teacher: str | None = Field(
        None, description="which of the teachers in the cache, by its name there; mean: of all; null: the one without"
    )
    window: int | None = Field(
        None, ge=1, description="shuffle blocks, then the samples of windows of so many; null: all samples at once"
    )


class Codec(Section):
    """How a row of logits is stored, other signals as float32 where that is said, else float16.

    `k` and `temperature` are top-k's, that keeps what is probable at it.
    """

    main_field = "kind"
    kind: Literal["float16", "float32", "int8", "top-k"] = "float16"
    k: int | None = Field(None, ge=1, description="how many logits of a row are kept")
    temperature: float | None = Field(None, gt=0, description="at which the others' probabilities are added up")

    @model_validator(mode="after")
    def _fields_of_kind(self) -> "Codec":
        given = (self.k is not None, self.temperature is not None)
        if given != ((True, True) if self.kind == "top-k" else (False, False)):
            raise ValueError("top-k takes k and temperature, the other codecs neither")
        return self


class Cache(Section):
    """What stage one writes."""

    views: int | Literal["all"] = "all"
    signals: tuple[str, ...] = Field(
        ("logits",),
        min_length=1,
        description="logits, embedding, last_map, map2-before, …; cam and attention: those that cat-kd and at need",
    )
    codec: Codec = Codec()
    store: str = Field("zarr", description="how the cache is laid out: zarr or webdataset")
    precision: Precision = "auto"
    batch_size: int = Field(256, ge=1)
    views_at_once: int = Field(4, ge=1, description="for how many views a photograph is decoded once")
    block_mb: float = Field(4, gt=0, le=64, description="largest block of the largest signal, in MiB")


class Alignment(Section):
    """Which terms' gradient is kept, and against which terms; null: those of logits that aren't kept."""

    kept: tuple[str, ...] = Field(("ce",), min_length=1)
    against: tuple[str, ...] | None = Field(None, min_length=1)
    every: int = Field(1, ge=1, description="steps for which a coefficient is used; above 1 an approximation, cheaper")


class Experiment(Section):
    """One preset: data set, views, teacher, cache and student, with the record of what is known of them."""

    description: str
    data: Data
    views: Views
    teacher: Teacher
    cache: Cache = Cache()
    student: Student
    objective: str = Field("dhkd", description="a name, or several with factors: dhkd + 0.5 * reviewkd")
    alignment: Alignment | None = Field(None, description="of gradients; null: as the objective has it")
    objectives: Mapping[str, Free] = Field(
        default_factory=dict, description="each objective's options where they differ from its own defaults"
    )
    seed: int = Field(0, ge=0, le=MAX_SEED)
    smoke: Free = Field(default_factory=dict, description="what --smoke sets, to run in seconds")
    record: Free = Field(
        default_factory=dict,
        description="free; ours hold commands, paper, parameters, published (top-1 in percent) and measured",
    )
