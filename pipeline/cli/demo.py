"""The command `demo`: the whole workflow once, on data that needs no download."""

from pathlib import Path

import click
from dhkd.data.disk.writable import require_writable_folder
from dhkd.pipeline.cli.options import cpu_option, json_option
from dhkd.pipeline.cli.output import emit
from dhkd.pipeline.cli.paths import OUT_FOLDER


@click.command()
@click.option("--out", type=OUT_FOLDER, help="Output folder, new or empty [default: a new folder in runs/].")
@cpu_option
@click.option("--smoke", is_flag=True, help="Finish in seconds instead of minutes; the networks learn nothing.")
@json_option
def demo(out: Path | None, cpu: bool, smoke: bool, as_json: bool) -> None:
    """Train a teacher, cache it and train four students.

    The data set comes with the program. The demo takes a few minutes on a CPU.
    """
    require_writable_folder(out or Path("runs"))
    from dhkd.pipeline.cli.tables.demo import demo_table
    from dhkd.pipeline.demo import run_demo

    result = run_demo(out, cpu=cpu, smoke=smoke)
    emit(result, as_json, lambda: demo_table(result))
