"""The command line as a user runs it, in this interpreter or as processes of their own."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from tests.forks import forked, joint_environments
from tests.golden.commands import Outcome, launcher, run

COMMAND = [sys.executable, "-P", "-m", "dhkd.pipeline.cli"]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


# digits cut to what takes a second: 150 samples, 3 views in 2 blocks each, networks of 8 layers.
SMALL = [
    *(
        "--set",
        "data.limit=150",
        "--set",
        "cache.views=3",
        "--set",
        "cache.block_mb=0.0015",
        "--set",
        "teacher=resnet8",
    ),
    *("--set", "teacher.epochs=1", "--set", "student.epochs=2", "--cpu", "--precision", "float32"),
]


SMALL_VERIFY = [word for word in SMALL if word not in ("--precision", "float32")]


def dhkd(*words: object) -> Outcome:
    """Run a command in this interpreter, which saves the seconds that importing torch takes."""
    return run([str(word) for word in words])


def done(*words: object) -> Outcome:
    """Run a command that has to succeed."""
    outcome = dhkd(*words)
    assert outcome.code == 0, outcome.err
    return outcome


def spawn(*words: object, **options: Any) -> subprocess.Popen[str]:
    """Start a command as a process of its own: a fork, or an interpreter if it gets another environment `env`."""
    if "env" not in options:
        return forked(["dhkd", *map(str, words)], ENVIRONMENT, **options)
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Shells start background jobs with Ctrl-C ignored, and processes hand that on to those they start.
    settings["preexec_fn"] = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([*COMMAND, *map(str, words)], **{**settings, **options})


def in_processes(
    number: int, *words: object, script: Path | None = None, environment: Mapping[str, str] = ENVIRONMENT
) -> Outcome:
    """Run a command, or a script, in several processes as a cluster's scheduler starts them, and wait for them."""
    command = [str(script or "dhkd"), *map(str, words)]
    with TemporaryFile("w+") as printed, TemporaryFile("w+") as reported:
        processes = [
            forked(command, {**environment, **place}, stdout=printed, stderr=reported)
            for place in joint_environments(number)
        ]
        try:
            codes = [process.wait(timeout=240) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        outputs = []
        for stream in (printed, reported):
            stream.seek(0)
            outputs.append(stream.read())
    return Outcome(max(map(abs, codes)), *outputs)


def under_torchrun(number: int, *words: object) -> Outcome:
    """Run a command in several processes under torchrun, each with an interpreter of its own, and wait for them."""
    done = subprocess.run(
        [*launcher(number), "--no-python", *COMMAND, *map(str, words)],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


def assert_one_line(outcome: Outcome, code: int, says: Sequence[str]) -> None:
    """One line that begins with error and holds all of `says`, nothing on standard output, and this exit code."""
    lines = [line for line in outcome.err.splitlines() if line.startswith("error")]
    assert outcome.code == code, outcome.err
    assert len(lines) == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    for words in says:
        assert words in lines[0]
