"""The command line: a file for each group of commands, and one line for each command in `COMMANDS`.

Nothing heavier than click is imported until a command runs, so that `--help` is fast. Results go to standard output,
logs and progress to standard error; `EXIT_CODES` says which exit codes there are.
"""

import contextlib
import io
import logging
import os
import signal
import sys
import traceback

import click
from dhkd.data import own_code
from dhkd.data.disk.remedies import os_error_line
from dhkd.data.errors import DhkdError, error_line
from dhkd.data.shown import shown
from dhkd.pipeline.cli import bench, cache, demo, networks, plan, presets, report, share, train
from dhkd.pipeline.cli.groups import Group
from dhkd.pipeline.cli.stopping import Stopped, signals_as_exceptions
from dhkd.pipeline.cli.streams import flushed_streams, open_closed_streams
from dhkd.pipeline.cli.surroundings import prepare

CONTINUE = "run the same command again to continue (training needs --resume)"
EXIT_CODES = (
    "The exit code is 0; 1 if the command failed; 2 for a wrong option or setting; or, if a signal stopped the command,"
    " 128 plus its number: 130 for Ctrl-C, 143 for SIGTERM."
)
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
    networks.predict,
    cache.inspect,
    cache.verify,
    cache.convert,
    share.share,
    demo.demo,
    bench.bench,
)


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=EXIT_CODES
)
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
    if "_DHKD_COMPLETE" in os.environ:
        cli(prog_name="dhkd")  # completes words in a shell, and ends
    open_closed_streams()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Shown("%(message)s"))
    logging.getLogger("dhkd").setLevel(logging.INFO)
    logging.raiseExceptions = False  # a log that can't be written doesn't end the work
    debug = "--debug" in sys.argv
    if _joint() and not debug:
        # If a connection breaks, torch's C++ libraries would print a stack trace. Our error message says what happened.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    code, unprinted = _run(debug)
    code = flushed_streams(code, unprinted)
    if code:
        sys.exit(code)


def _run(debug: bool) -> tuple[int, OSError | None]:
    """Run the command that `sys.argv` states, and print its error if it fails.

    Returns the exit code, and the error of standard output if it could not take the result.
    """
    try:
        with signals_as_exceptions():
            prepare()
            # Not `cli()`, which ends without a word if any connection breaks, as if standard output were closed.
            with cli.make_context("dhkd", sys.argv[1:]) as context:
                cli.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code, None
    except click.ClickException as error:
        usage = io.StringIO()
        error.show(usage)
        with contextlib.suppress(OSError):  # standard error may be closed or full
            click.echo(shown(usage.getvalue()), nl=False, err=True)
        _tell_others(error.format_message())
        return error.exit_code, None
    except DhkdError as error:
        return _failed(str(error), error.exit_code, debug)
    except OSError as error:
        if _is_of_printing(error):
            return 0, error
        return _failed(str(own_code.explained(error) or os_error_line(error)), 1, debug)
    except (KeyboardInterrupt, click.Abort):
        return _failed(f"interrupted; {CONTINUE}", 128 + signal.SIGINT, debug)
    except Stopped as stopped:
        return _failed(f"stopped by {stopped}; {CONTINUE}", 128 + stopped.number, debug)
    except Exception as error:
        explained = own_code.explained(error)
        if explained is None:
            raise  # a bug in the program
        return _failed(str(explained), explained.exit_code, debug)
    return 0, None


class _Shown(logging.Formatter):
    """Formats log lines without secrets and without characters that act on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


def _is_of_printing(error: OSError) -> bool:
    return any(frame.name == "echo" for frame in traceback.extract_tb(error.__traceback__))


def _failed(line: str, code: int, debug: bool) -> tuple[int, None]:
    if debug:
        logging.getLogger("dhkd").exception("traceback of the error below")
    line = error_line(shown(line))
    with contextlib.suppress(OSError):
        click.echo(line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}…", err=True)
    _tell_others(line)
    return code, None


def _joint() -> bool:
    """Return whether a launcher started several processes of this command."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


def _tell_others(line: str) -> None:
    """Tell the other processes of a joint command, which would wait for this one."""
    if _joint():
        from dhkd.stages.watch import tell_others

        tell_others(f"ended: {' '.join(line.split())}")
