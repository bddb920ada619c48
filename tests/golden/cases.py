"""The golden cases, which show that results stay the same: two teachers, their caches, and a student for each case.

Every part is a command, given as the list of its words, with paths relative to one folder. All commands use the preset
`digits`, shortened to seconds: 79 samples in batches of 25, so that the last batch is small; three epochs of four
steps; networks of eight layers, the teacher's wider than the student's; and blocks of 27 rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

TEACHER, OTHER_TEACHER = "runs/teacher", "runs/other-teacher"
SIGNALS, INT8, TOP_K, FLOAT32, TWO = (
    f"caches/{name}" for name in ("signals.zarr", "int8-tar", "top-k.zarr", "float32.zarr", "two-teachers.zarr")
)
STEPS = 12
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}

# The learning rate is low. At the preset's rate, `cat-kd` with the weight published for CIFAR-100 may end in NaN; and
# differences between machines in the last digit would grow fast from step to step.
OPTIONS = (
    *("data.limit=79", "data.test_limit=40"),
    *("teacher=resnet8x4", "teacher.epochs=2", "teacher.batch_size=25", "teacher.lr=0.02", "cache.views=3"),
    *("student.epochs=3", "student.batch_size=25", "student.lr=0.01"),
    *("objectives.crd.negatives=40",),  # of 79 samples
    *("objectives.cat-kd.cam_weight=15",),
)
COMPUTING, NO_TRACKER = ("--cpu", "--precision", "float32"), ("--track", "none")
# The size in MiB of a block of 27 rows, for each cache.
BLOCKS = {SIGNALS: "0.14", INT8: "0.00046", TOP_K: "0.00061", FLOAT32: "0.0011", TWO: "0.00055"}


def sets(options: Sequence[str]) -> list[str]:
    """Return the words that override settings of a preset."""
    return [word for option in options for word in ("--set", option)]


def train_teacher(out: str, *options: str) -> list[str]:
    """Return the words of the command that trains a teacher."""
    return ["train-teacher", "digits", *sets([*OPTIONS, *options]), *COMPUTING, *NO_TRACKER, "--out", out]


def cache_teacher(out: str, *words: str, teacher: str = TEACHER) -> list[str]:
    """Return the words of the command that writes a cache."""
    options = [*OPTIONS, f"cache.block_mb={BLOCKS[out]}"]
    return ["cache-teacher", "digits", *sets(options), *COMPUTING, "--teacher", teacher, "--out", out, *words]


# All signals that objectives read and caches can hold. They aren't given with --signals, because torchrun would take
# it for an option of torchrun.
ALL_SIGNALS = "cache.signals=[logits,embedding,cam,attention,last_map,map2,map1-before,map2-before,map3-before]"
PREPARATION = {
    "teacher": train_teacher(TEACHER),
    "other-teacher": train_teacher(OTHER_TEACHER, "seed=1"),
    "signals": cache_teacher(SIGNALS, "--set", ALL_SIGNALS),
    "int8-tar": cache_teacher(INT8, "--store", "webdataset", "--codec", "int8"),
    "top-k": cache_teacher(TOP_K, *sets(["cache.codec={kind: top-k, k: 4, temperature: 4.0}"])),
    "float32": cache_teacher(FLOAT32, "--codec", "float32", "--views", "2"),
    "float32-extended": cache_teacher(FLOAT32, "--codec", "float32", "--views", "9"),
    "two-teachers-a": cache_teacher(TWO, "--name", "a"),
    "two-teachers-b": cache_teacher(TWO, "--name", "b", teacher=OTHER_TEACHER),
}


@dataclass(frozen=True)
class Case:
    """A student: its changes to the preset, the cache it learns from, and the number of processes that train it.

    If `teacher` is true, training gets the teacher's weights, because a cache can't hold all that the objective needs.
    """

    name: str
    options: tuple[str, ...]
    cache: str | None = SIGNALS
    teacher: bool = False
    processes: int = 1

    @property
    def out(self) -> str:
        """The run's folder."""
        return f"runs/{self.name}"

    @property
    def words(self) -> list[str]:
        """The words of the command that trains the student."""
        words = ["train-student", "digits", *sets([*OPTIONS, *self.options]), *COMPUTING, *NO_TRACKER]
        words += ["--cache", self.cache] if self.cache else []
        words += ["--teacher", TEACHER] if self.teacher else []
        return [*words, "--out", self.out]


def _of(objective: str, *options: str) -> tuple[str, ...]:
    return (f"objective={objective}", *options)


LIVE = "teacher.live=true"
SLOWER = "student.lr=0.001"  # for cases in which differences grow fast even at the low rate
CASES = (
    Case("ce", _of("ce"), cache=None),
    Case("label-smoothing", _of("label-smoothing"), cache=None),
    *(Case(name, _of(name)) for name in ("kd", "mse", "dkd", "binary-kl", "binary-kl-norm", "dhkd")),
    *(Case(name, _of(name, SLOWER)) for name in ("dist", "fitnet", "rkd")),
    *(Case(name, _of(name)) for name in ("at", "crd", "reviewkd", "cat-kd")),
    Case("simkd", _of("simkd"), teacher=True),
    Case("ofd", _of("ofd", LIVE), teacher=True),
    # The definitions that these two had before they became those of the authors' code.
    Case("crd-replacement", _of("crd", "objectives.crd.replacement=true")),
    Case("cat-kd-bias", _of("cat-kd", "objectives.cat-kd.bias=true")),
    # Several objectives at once.
    Case("dhkd-and-kd", _of("dhkd + 0.5 * kd")),
    Case("crd-and-reviewkd", _of("crd + 0.5 * reviewkd")),
    # Gradients aligned exactly, or with a coefficient that serves two steps; rkd's terms are left out of the alignment.
    Case("dhkd-every-2", _of("dhkd", "alignment.every=2")),
    Case("kd-aligned", _of("kd", "alignment.every=1")),
    Case("kd-aligned-every-2", _of("kd", "alignment.every=2")),
    Case("kd-and-rkd-aligned", _of("kd + rkd", "alignment.kept=[kd]", SLOWER)),
    # View schedules and orders; all other cases have the schedule `independent`.
    Case("kd-cycle", _of("kd", "student.view_schedule=cycle")),
    Case("kd-cycle-window", _of("kd", "student.view_schedule=cycle", "student.window=54")),
    Case("kd-block", _of("kd", "student.view_schedule=block")),
    Case("kd-block-window", _of("kd", "student.view_schedule=block", "student.window=54")),
    Case("kd-independent-window", _of("kd", "student.window=54")),
    Case("kd-two-views", _of("kd", "student.views=2")),
    # Where the teacher's logits come from.
    Case("kd-int8-tar", _of("kd"), cache=INT8),
    Case("kd-int8-tar-window", _of("kd", "student.view_schedule=block", "student.window=54"), cache=INT8),
    Case("kd-top-k", _of("kd"), cache=TOP_K),
    Case("kd-float32", _of("kd"), cache=FLOAT32),
    Case("kd-mean-of-teachers", _of("kd", "student.teacher=mean"), cache=TWO),
    Case("kd-live", _of("kd", LIVE), cache=None, teacher=True),
    # Learning-rate schedules and gradient clipping.
    Case("ce-clipped", _of("ce", "student.lr_schedule=multistep", "student.milestones=[2]", "student.clip_norm=0.5")),
    Case("ce-warm-up", _of("ce", "student.lr_schedule=cosine", "student.warmup_epochs=1.5", "seed=3"), cache=None),
    # Two processes: summed gradients, aligned gradients, losses that couple a batch's rows, and the last two together.
    *(
        Case(f"{name}-two-processes", options, processes=2)
        for name, options in {
            "kd": _of("kd"),
            "kd-block-window": _of("kd", "student.view_schedule=block", "student.window=54"),
            "dhkd": _of("dhkd"),
            "dhkd-every-2": _of("dhkd", "alignment.every=2"),
            "rkd": _of("rkd", SLOWER),
            "crd": _of("crd"),
            "dhkd-and-dist": _of("dhkd + dist", SLOWER),
        }.items()
    ),
)
