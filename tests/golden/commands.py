"""Run many commands in one interpreter, each as if it ran alone: `python commands.py FILE`.

FILE is a JSON list with the list of words of each command. This script imports no more of the program than the command
line does, and prints a JSON line for each command when the command ends. Under torchrun every process runs all
commands, and the first process prints.
"""

import contextlib
import io
import json
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """A command's exit code, and its output on stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> Any:
        """The JSON object that the command printed."""
        return json.loads(self.out)


def run(words: Sequence[str]) -> Outcome:
    """Run one command in this interpreter."""
    from dhkd.pipeline.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    arguments, sys.argv = sys.argv, ["dhkd", *words]
    logging.root.handlers.clear()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = arguments
        logging.root.handlers.clear()
    return Outcome(code, out.getvalue(), err.getvalue())


def stay_together() -> None:
    """Keep torchrun's process group after a command, because the processes can't form another one."""
    import torch

    torch.distributed.destroy_process_group = lambda *_: None


def launcher(processes: int) -> list[str]:
    """Return the words that start a script as `processes` processes on this machine."""
    if processes == 1:
        return [sys.executable, "-P"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-P", "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    return [*words, "--master_addr", "127.0.0.1", "--master_port", str(port)]


if __name__ == "__main__":
    stay_together()
    for words in json.loads(Path(sys.argv[1]).read_text()):
        outcome = run(words)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(outcome), flush=True)  # noqa: T201
