"""The commands `plan` and `methods`: what an experiment would cost and need, before anything runs."""

from dataclasses import dataclass

import click
from dhkd.pipeline.cli.cluster import ClusterOptions, cluster_options
from dhkd.pipeline.cli.options import (
    ExperimentOptions,
    classes_option,
    cpu_option,
    experiment_options,
    gathered,
    json_option,
    samples_option,
)
from dhkd.pipeline.cli.output import emit


@dataclass(frozen=True)
class PlanOptions:
    """What is known about the data and the speed of both networks; an unknown value is None."""

    samples: int | None
    classes: int | None
    students: int | None
    teacher_rate: float | None
    student_rate: float | None
    ratio: float | None
    measure: bool
    cpu: bool


@click.command()
@experiment_options()
@gathered("known", PlanOptions)
@samples_option
@classes_option
@click.option(
    "--students", type=click.IntRange(1), metavar="S", help="Number of students to be trained from the cache."
)
@click.option("--teacher-rate", type=float, metavar="ROWS/S", help="Images per second in the teacher's forward pass.")
@click.option("--student-rate", type=float, metavar="ROWS/S", help="Images per second in a student's training step.")
@click.option(
    "--ratio",
    type=float,
    metavar="R",
    help="Time of one teacher forward pass divided by that of one student training step, on equally many images.",
)
@click.option("--measure", is_flag=True, help="Benchmark teacher and student on this machine, for a few seconds each.")
@cpu_option
@cluster_options
@json_option
def plan(experiment: ExperimentOptions, known: PlanOptions, cluster: ClusterOptions, as_json: bool) -> None:
    """Estimate the cost of caching and training; reads no data.

    Reports disk space, memory and (if speeds are given or measured) time, and the number of students at which caching
    becomes cheaper than running the teacher live. With --on, also reports hours, requests, bytes and money on a
    cluster.
    """
    of_cluster = cluster.known()
    if known.measure and any(rate is not None for rate in (known.teacher_rate, known.student_rate, known.ratio)):
        raise click.UsageError("--measure finds out --teacher-rate, --student-rate and --ratio; leave them out")
    loaded = experiment.load()
    from dhkd.pipeline.cli.tables.plan import plan_table
    from dhkd.pipeline.cluster_plan import Cluster
    from dhkd.pipeline.measure import Rates
    from dhkd.pipeline.plan import make_plan

    result = make_plan(
        loaded,
        samples=known.samples,
        classes=known.classes,
        rates=Rates(known.teacher_rate, known.student_rate, known.ratio),
        measure=known.measure,
        students=known.students,
        cpu=known.cpu,
        cluster=Cluster(**of_cluster) if of_cluster else None,  # type: ignore[arg-type]
    )
    emit(result, as_json, lambda: plan_table(result))


@click.command()
@experiment_options(preset=click.argument("preset", default="cifar100/resnet32x4-resnet8x4"))
@samples_option
@classes_option
@json_option
def methods(experiment: ExperimentOptions, samples: int | None, classes: int | None, as_json: bool) -> None:
    """List the methods, and what each needs from the teacher.

    Lists the signals (teacher outputs) that each method needs, the sizes of those signals, and the number of parameters
    that each method trains besides the student's. Sizes are computed for PRESET [default:
    cifar100/resnet32x4-resnet8x4]. The last column says whether the method runs for PRESET's two networks. To find out,
    its losses are computed for two images. Below the table are the reasons why methods don't run.
    """
    loaded = experiment.load()
    from dhkd.pipeline.cli.tables.methods import methods_table
    from dhkd.pipeline.methods import list_methods

    result = list_methods(loaded, samples=samples, classes=classes)
    emit(result, as_json, lambda: methods_table(result))
