"""The command line: a file for each group of commands, and one line for each command in `COMMANDS`.

Nothing heavier than click is imported until a command runs, so that `--help` is fast. Results go to standard output,
logs and progress to standard error; the exit code is 0, 1 (failed) or 2 (wrong usage).
"""

import io
import logging
import os
import sys

import click
from dhkd.data.errors import DhkdError
from dhkd.data.shown import shown
from dhkd.pipeline.cli import bench, cache, demo, networks, plan, presets, report, train

LONGEST_LINE = 10_000  # characters of an error; a stranger's file may hold names of any length

# 'dhkd --help' lists the commands in this order, the usual order of work.
COMMANDS = (
    presets.presets,
    plan.plan,
    plan.methods,
    train.train_teacher,
    cache.cache_teacher,
    train.train_student,
    train.sweep,
    report.report,
    report.serve,
    networks.evaluate,
    networks.export,
    cache.inspect,
    cache.verify,
    cache.convert,
    demo.demo,
    bench.bench,
)


class _InOrderOfWork(click.Group):
    """A group that lists its commands in the order in which they were added, instead of alphabetically."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrderOfWork, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="dhkd")
@click.option("--debug", is_flag=True, help="Show the full traceback if an error occurs.")
def cli(debug: bool) -> None:
    """Distil many students from one teacher that runs once.

    PRESET is a name listed by 'dhkd presets', a YAML file, or a run's folder (to reuse that run's settings).
    """


for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Run the command line. An error that a user can cause gives a one-line message and an exit code, no traceback."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Shown("%(message)s"))
    logging.getLogger("dhkd").setLevel(logging.INFO)
    debug = "--debug" in sys.argv
    try:
        cli(prog_name="dhkd", standalone_mode=False)
    except click.ClickException as error:
        usage = io.StringIO()
        error.show(usage)
        click.echo(shown(usage.getvalue()), nl=False, err=True)
        sys.exit(error.exit_code)
    except DhkdError as error:
        _fail(str(error), error.exit_code, debug)
    except OSError as error:
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        _fail(f"{name or 'operating system'}: {error.strerror or error}", 1, debug)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; run the same command again to continue (training needs --resume)", 1, debug)


class _Shown(logging.Formatter):
    """Lines that a terminal and a log may get, whoever wrote what they quote."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


def _fail(line: str, code: int, debug: bool) -> None:
    if debug:
        logging.getLogger("dhkd").exception("traceback of the error below")
    rank = os.environ.get("RANK")
    prefix = f"error (process {rank})" if rank is not None else "error"
    line = " ".join(shown(line).split())
    click.echo(f"{prefix}: {line if len(line) <= LONGEST_LINE else f'{line[:LONGEST_LINE]}…'}", err=True)
    sys.exit(code)
