"""The command `bench`, which measures this program's speed.

No other module imports the benchmarks, which import everything else.
"""

from collections.abc import Sequence
from pathlib import Path

import click
from dhkd.data.disk.writable import require_writable_file
from dhkd.pipeline.cli.options import json_option
from dhkd.pipeline.cli.output import emit, print_text
from dhkd.pipeline.cli.paths import OUT_FILE, PATH


@click.command()
@click.option("--quick", is_flag=True, help="Finish in seconds, to try the command; the figures mean nothing.")
@click.option(
    "--only",
    multiple=True,
    metavar="A,B",
    help="Run only these benchmarks, comma-separated; an unknown name lists them all.",
)
@click.option(
    "--out",
    type=OUT_FILE,
    help="JSON file for the figures [default: runs/bench.json, or runs/bench-quick.json with --quick].",
)
@click.option(
    "--compare", nargs=2, type=PATH, metavar="A B", help="Measure nothing; compare the JSON files of two earlier runs."
)
@json_option
def bench(quick: bool, only: Sequence[str], out: Path | None, compare: tuple[Path, Path] | None, as_json: bool) -> None:
    """Measure dhkd's speed and memory on this machine.

    Each figure is shown beside its target.
    """
    if compare is not None:
        from dhkd.benchmarks.compare import comparison

        return print_text(comparison(*compare))
    from dhkd.benchmarks.run import POINTS
    from dhkd.benchmarks.run import bench as measure

    if out is None:
        out = Path("runs") / ("bench-quick.json" if quick else "bench.json")
        require_writable_file(out)
    points = [point.strip() for points in only for point in points.split(",")]
    result, table = measure(points or POINTS, quick=quick, out=out)
    return emit(result, as_json, lambda: table)
