"""Commands and scripts as processes of their own that are forks of the test's process.

A new interpreter takes several seconds of CPU to import torch; a fork has imported it. It is a child like any other: it
has its own standard streams, environment and signals, and can be killed. Nothing of the test's process but what is
imported and computed once reaches it. Real interpreters stay where imports, hash seeds or torchrun itself matter.
"""

import atexit
import faulthandler
import gc
import inspect
import logging
import multiprocessing.process
import multiprocessing.util
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState


class Forked(subprocess.Popen[str]):
    """A `Popen` whose child goes on in a fork of this interpreter: it runs a Python file, or `dhkd` for "dhkd"."""

    def _execute_child(self, *given: Any) -> None:
        options = inspect.signature(subprocess.Popen._execute_child).bind(self, *given).arguments  # type: ignore[attr-defined]
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            _run(options)
        self.pid, self._child_created = pid, True
        self._close_pipe_fds(  # type: ignore[attr-defined]
            *(options[end] for end in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"))
        )


def forked(words: list[str], environment: Mapping[str, str], **options: Any) -> subprocess.Popen[str]:
    """Start a fork, or a process of its own where a fork could not use what CUDA has begun."""
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    if torch.cuda.is_available():
        program = ["-m", "dhkd.pipeline.cli"] if words[0] == "dhkd" else [words[0]]
        return subprocess.Popen([sys.executable, "-P", *program, *words[1:]], env=environment, **settings)
    return Forked(words, env=environment, **settings)


def joint_environments(number: int) -> list[dict[str, str]]:
    """The variables with which torchrun, or a cluster's scheduler, starts each of several processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]


def _run(options: Mapping[str, Any]) -> NoReturn:
    code = 99
    try:
        _become_another(options)
        code = _exit_code([os.fspath(word) for word in options["args"]])
        multiprocessing.util._exit_function()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _become_another(options: Mapping[str, Any]) -> None:
    """Leave what belongs to the test's process: its streams, files, signals, variables, and duties at its end."""
    if options["start_new_session"]:
        os.setsid()
    read = options["p2cread"] if options["p2cread"] != -1 else os.open(os.devnull, os.O_RDONLY)
    wanted = [os.dup(end) for end in (read, options["c2pwrite"], options["errwrite"])]
    for stream, end in enumerate(wanted):
        os.dup2(end, stream)
    faulthandler.disable()
    logging.root.handlers.clear()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(stream, mode) for stream, mode in enumerate("rww"))
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    gc.freeze()  # so that no object of the test's process is finalized here
    atexit._clear()
    multiprocessing.util._finalizer_registry.clear()  # type: ignore[attr-defined]
    multiprocessing.process._children.clear()  # type: ignore[attr-defined]
    for kind in (PartialState, AcceleratorState, GradientState):  # an `Accelerator` of the test's process, alone there
        kind._shared_state.clear()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(options["env"])
    if options["cwd"] is not None:
        os.chdir(options["cwd"])


def _exit_code(words: list[str]) -> int:
    sys.argv = words
    try:
        if words[0] == "dhkd":
            from dhkd.pipeline.cli import main

            main()
        else:
            runpy.run_path(str(Path(words[0])), run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    return 0
