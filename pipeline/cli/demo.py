"""demo: everything once, on data that needs no download."""

from pathlib import Path

import click
from dhkd.pipeline.cli.options import PATH, cpu_option, json_option
from dhkd.pipeline.cli.output import emit


@click.command()
@click.option("--out", type=PATH, help="Folder for everything that it makes [default: a new one under runs/].")
@cpu_option
@click.option("--smoke", is_flag=True, help="Take seconds instead of minutes; nothing is learnt.")
@json_option
def demo(out: Path | None, cpu: bool, smoke: bool, as_json: bool) -> None:
    """Train a teacher, cache it and train four students.

    The data set comes with the program; on a CPU it takes a few minutes.
    """
    from dhkd.pipeline.cli.tables.demo import demo_table
    from dhkd.pipeline.demo import run_demo

    result = run_demo(out, cpu=cpu, smoke=smoke)
    emit(result, as_json, lambda: demo_table(result))
