"""The options of `plan` for a cluster: its workers, the store that they write to, and prices."""

from dataclasses import dataclass

import click
from dhkd.pipeline.cli.options import FiniteRange, Function, gathered, options
from dhkd.pipeline.engines.choice import HERE

_POSITIVE, _PRICE = FiniteRange(0, min_open=True), FiniteRange(0)

_cluster_options = (
    click.option("--on", default=HERE, show_default=True, metavar="ENGINE", help="Plan for workers of ray or slurm."),
    click.option("--workers", type=click.IntRange(1), metavar="W", help="With --on: number of workers."),
    click.option(
        "--store-mb-per-s", type=_POSITIVE, metavar="MB", help="With --on: the store's bandwidth [default: 20000]."
    ),
    click.option(
        "--worker-mb-per-s", type=_POSITIVE, metavar="MB", help="With --on: one worker's bandwidth [default: 500]."
    ),
    click.option(
        "--writes-per-s", type=_POSITIVE, metavar="N", help="With --on: PUT requests that the store takes [default:"
        " 3500]."
    ),
    click.option(
        "--reads-per-s", type=_POSITIVE, metavar="N", help="With --on: GET requests that the store takes [default:"
        " 5500]."
    ),
    click.option(
        "--image-kb",
        type=_PRICE,
        metavar="KB",
        help="With --on: size of an image that workers fetch by URL [default: 0, images are local].",
    ),
    click.option("--price-gpu-hour", type=_PRICE, metavar="P", help="With --on: price of a worker's GPU for an hour."),
    click.option("--price-puts", type=_PRICE, metavar="P", help="With --on: price of 1,000 PUT or LIST requests."),
    click.option("--price-gets", type=_PRICE, metavar="P", help="With --on: price of 1,000 GET or HEAD requests."),
    click.option("--price-gb-month", type=_PRICE, metavar="P", help="With --on: price of a GB stored for a month."),
    click.option("--price-gb-out", type=_PRICE, metavar="P", help="With --on: price of a GB read from the store."),
)  # fmt: skip


@dataclass(frozen=True)
class ClusterOptions:
    """What is known of a cluster; None stands for the default of `pipeline.cluster_plan.Cluster`."""

    on: str
    workers: int | None
    store_mb_per_s: float | None
    worker_mb_per_s: float | None
    writes_per_s: float | None
    reads_per_s: float | None
    image_kb: float | None
    price_gpu_hour: float | None
    price_puts: float | None
    price_gets: float | None
    price_gb_month: float | None
    price_gb_out: float | None

    def known(self) -> dict[str, str | int | float] | None:
        """Return what was said of the cluster, by the fields of `Cluster`; None if the work runs here."""
        said = {name: value for name, value in vars(self).items() if value is not None and name != "on"}
        if self.on == HERE:
            if said:
                raise click.UsageError(f"--{next(iter(said)).replace('_', '-')}: it needs --on ray or --on slurm")
            return None
        if self.workers is None:
            raise click.UsageError(f"--on {self.on}: expected the number of workers, got none; add --workers W")
        return {"on": self.on, **said}


def cluster_options(function: Function) -> Function:
    """Add --on and the options of a cluster, gathered into the argument `cluster`."""
    return options(*_cluster_options)(gathered("cluster", ClusterOptions)(function))
