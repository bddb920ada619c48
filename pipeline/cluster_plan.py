"""What caching and training will cost on a cluster: hours, requests, bytes over the network, and money.

These are sums and quotients, which name what bounds the work. Left out on purpose: workers that are lost, come late or
differ in speed, for which `python -m dhkd.benchmarks.scale` simulates the real schedule.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dhkd.configs.schema import Experiment
from dhkd.data.cache.blocks import MOST_BLOCKS
from dhkd.data.errors import ConfigError
from dhkd.pipeline.engines.choice import HERE

ENGINES = ("ray", "slurm", "slurm:local")
LISTED_AT_A_TIME = 1000  # objects in the answer to one LIST request
LISTINGS = 2  # of a whole cache: what is missing at the beginning and at the end
MANY_OBJECTS = 1_000_000
FEW_UNITS = 10  # for each worker; with fewer, most workers wait a long time for the last units
LARGEST_BLOCK_MB = 64
SHORT_HOURS = 0.05
MB, GB = 1e6, 1e9


@dataclass(frozen=True)
class Cluster:
    """Workers, the store that they write to, and prices; a price that is None is not counted.

    Prices are for an hour of one worker's GPU, for 1,000 PUT or LIST requests, for 1,000 GET or HEAD requests, for
    a GB stored for a month, and for a GB that is read from the store.
    """

    on: str
    workers: int
    store_mb_per_s: float = 20_000.0
    worker_mb_per_s: float = 500.0
    writes_per_s: float = 3500.0
    reads_per_s: float = 5500.0
    image_kb: float = 0.0
    price_gpu_hour: float | None = None
    price_puts: float | None = None
    price_gets: float | None = None
    price_gb_month: float | None = None
    price_gb_out: float | None = None

    def __post_init__(self) -> None:
        if self.on not in ENGINES and not self.on.startswith("ray://"):
            raise ConfigError(f"--on: expected {HERE}, ray, ray://HOST:PORT, slurm or slurm:local, got {self.on!r}")


@dataclass(frozen=True)
class Traffic:
    """Requests to the store, and bytes over the network."""

    puts: int
    gets: int
    heads: int
    lists: int
    bytes_written: int
    bytes_read: int


@dataclass(frozen=True)
class Stage:
    """Hours of a stage, what bounds it, and the hours that each limit alone would take."""

    hours: float
    bound_by: str
    hours_of: dict[str, float]
    traffic: Traffic


@dataclass(frozen=True)
class Money:
    """Money by what it is paid for; `stored_month` is for each month."""

    stage_one: float
    students: float
    requests: float
    network: float
    stored_month: float


@dataclass(frozen=True)
class ClusterPlan:
    """What an experiment costs on a cluster; `students` is None if their number or their rate is unknown."""

    cluster: Cluster
    objects: int
    units_per_worker: float
    stage_one: Stage
    students: Stage | None
    money: Money
    advice: Sequence[str]


@dataclass(frozen=True)
class CacheSize:
    """What a cluster has to write, and students have to read."""

    rows: int
    row_bytes: int
    blocks: int
    objects: int


def plan_on(
    cluster: Cluster,
    experiment: Experiment,
    size: CacheSize,
    teacher_rate: float | None,
    student_rate: float | None,
    students: int | None,
    samples: int,
) -> ClusterPlan:
    """Compute what caching and S students cost on a cluster; rates are in rows per second of one worker."""
    if teacher_rate is None:
        raise ConfigError(
            f"--on {cluster.on}: expected the teacher's rate on one worker, got none; give --teacher-rate ROWS/S, or"
            f" --measure to measure it here"
        )
    units = size.blocks / _views_at_once(experiment) / cluster.workers
    stage_one = _stage_one(cluster, experiment, size, teacher_rate)
    trained = None
    if students is not None and student_rate is not None:
        trained = _students(cluster, experiment, size, student_rate, students, samples)
    return ClusterPlan(
        cluster=cluster,
        objects=size.objects,
        units_per_worker=units,
        stage_one=stage_one,
        students=trained,
        money=_money(cluster, size, stage_one, trained, students, student_rate, samples * experiment.student.epochs),
        advice=_advice(experiment, size, units, stage_one),
    )


def _views_at_once(experiment: Experiment) -> int:
    """Return how many views are rendered for each decoding of an image; images of crop-flip are decoded before."""
    return 1 if experiment.views.kind == "crop-flip" else experiment.cache.views_at_once


def _stage_one(cluster: Cluster, experiment: Experiment, size: CacheSize, rate: float) -> Stage:
    """Writing overlaps with computing; everything is read back once, after that."""
    stored = size.rows * size.row_bytes
    images = int(size.rows / _views_at_once(experiment) * cluster.image_kb * 1e3)
    traffic = Traffic(
        puts=size.objects + 2,  # the manifest and the index
        gets=size.objects,
        heads=size.blocks,
        lists=LISTINGS * -(-size.objects // LISTED_AT_A_TIME),
        bytes_written=stored,
        bytes_read=stored + images,
    )
    network = min(cluster.store_mb_per_s, cluster.workers * cluster.worker_mb_per_s) * MB
    hours_of = {
        "teacher": size.rows / (cluster.workers * rate) / 3600,
        "network": max(stored, images) / network / 3600,
        "requests": max(traffic.puts / cluster.writes_per_s, traffic.heads / cluster.reads_per_s) / 3600,
    }
    check = max(stored / network, traffic.gets / cluster.reads_per_s) / 3600
    bound_by = max(hours_of, key=lambda limit: hours_of[limit])
    return Stage(hours_of[bound_by] + check, bound_by, {**hours_of, "check": check}, traffic)


def _students(
    cluster: Cluster, experiment: Experiment, size: CacheSize, rate: float, students: int, samples: int
) -> Stage:
    """Each student reads the cache once if it keeps the views that it needs, i.e. each view at most once."""
    epochs = experiment.student.epochs
    views = size.rows // samples
    read = students * min(views, epochs) * samples * size.row_bytes
    gets = students * size.objects * min(views, epochs) // views
    at_a_time = min(cluster.workers, students)
    network = min(cluster.store_mb_per_s, at_a_time * cluster.worker_mb_per_s) * MB
    hours_of = {
        "student": -(-students // cluster.workers) * samples * epochs / rate / 3600,
        "network": read / network / 3600,
        "requests": gets / cluster.reads_per_s / 3600,
    }
    bound_by = max(hours_of, key=lambda limit: hours_of[limit])
    return Stage(hours_of[bound_by], bound_by, hours_of, Traffic(0, gets, 0, 0, 0, read))


def _money(
    cluster: Cluster,
    size: CacheSize,
    stage_one: Stage,
    trained: Stage | None,
    students: int | None,
    student_rate: float | None,
    rows_of_student: int,
) -> Money:
    traffic = [stage.traffic for stage in (stage_one, trained) if stage is not None]
    student_hours = students * rows_of_student / student_rate / 3600 if students and student_rate else 0.0
    return Money(
        stage_one=(cluster.price_gpu_hour or 0) * cluster.workers * stage_one.hours,
        students=(cluster.price_gpu_hour or 0) * student_hours,
        requests=sum(
            (cluster.price_puts or 0) * (each.puts + each.lists) + (cluster.price_gets or 0) * (each.gets + each.heads)
            for each in traffic
        )
        / 1000,
        network=(cluster.price_gb_out or 0) * sum(each.bytes_read for each in traffic) / GB,
        stored_month=(cluster.price_gb_month or 0) * size.rows * size.row_bytes / GB,
    )


def _advice(experiment: Experiment, size: CacheSize, units: float, stage_one: Stage) -> list[str]:
    """Say what the number of objects means, and which blocks would be better."""
    block_mb, advice = experiment.cache.block_mb, list[str]()
    if (size.objects > MANY_OBJECTS or size.blocks > MOST_BLOCKS) and block_mb < LARGEST_BLOCK_MB:
        times = max(size.objects / MANY_OBJECTS, size.blocks / MOST_BLOCKS)
        limit = f" (at most {MOST_BLOCKS:,} blocks are possible)" if size.blocks > MOST_BLOCKS else ""
        advice.append(
            f"{size.objects:,} objects are many{limit}: a listing takes {-(-size.objects // LISTED_AT_A_TIME):,}"
            f" requests, one after the other; --set cache.block_mb={min(LARGEST_BLOCK_MB, math.ceil(times * block_mb))}"
            f" makes fewer"
        )
    elif units < FEW_UNITS and stage_one.bound_by == "teacher" and stage_one.hours > SHORT_HOURS:
        mb = size.rows / size.blocks * size.row_bytes / 2**20
        advice.append(
            f"{units:.2g} units for each worker are few: workers that have none left wait for the last ones;"
            f" --set cache.block_mb={mb * units / FEW_UNITS:.2g} makes {FEW_UNITS}"
        )
    if stage_one.bound_by != "teacher":
        advice.append(f"more workers would not be faster: the {stage_one.bound_by} is the limit")
    return advice
