"""What an engine costs: a sweep of short runs on Ray, compared with as many processes of `dhkd sweep`.

Both sides are whole commands, with the start of Python, torch and the cluster. Seconds of CPU are counted for all
processes that a command starts; on a busy machine they say more.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import psutil
from dhkd.benchmarks.figure import Figure, middle
from dhkd.benchmarks.setup import Setup

WORKERS = 2
EPOCHS = 8  # of digits: a run of about two seconds
RAY = ("--on", "ray", "--on-option", "address=local", "--on-option", f"num_cpus={WORKERS}", "--cpus", "1")
LOOK_SECONDS = 0.5  # between two looks at the seconds that processes have used


def engines(setup: Setup) -> list[Figure]:
    """Measure a sweep on Ray over the same sweep as two processes, in seconds and in seconds of CPU."""
    rounds, runs = setup.sizes.engine_rounds, setup.sizes.engine_runs
    seconds: dict[str, list[tuple[float, float]]] = {"here": [], "ray": []}
    for number in range(rounds):
        for name in ("here", "ray") if number % 2 == 0 else ("ray", "here"):
            folder = tempfile.mkdtemp(prefix="r-", dir="/tmp")  # short, for the paths of Ray's sockets
            try:
                seconds[name].append(_measured(_commands(name, Path(folder), runs)))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    of_run = median(cpu for _, cpu in seconds["here"]) / runs
    detail = f"sweep of {runs} runs of {of_run:.1f} s of CPU on {WORKERS} workers of one thread, whole commands"
    walls = [ray[0] / here[0] for here, ray in zip(seconds["here"], seconds["ray"], strict=True)]
    cpus = [ray[1] / here[1] for here, ray in zip(seconds["here"], seconds["ray"], strict=True)]
    return [
        middle("sweep on ray / as many processes", walls, "×", detail, at_most=1.15),
        middle("the same, seconds of CPU", cpus, "×", detail, at_most=1.15),
    ]


def _commands(name: str, folder: Path, runs: int) -> list[Sequence[str]]:
    settings = ("objective=ce", "student=resnet8", f"student.epochs={EPOCHS}", "student.precision=float32")
    words = [sys.executable, "-P", "-m", "dhkd.pipeline.cli", "sweep", "digits", "--seeds", str(runs), "--cpu"]
    words += ["--track", "none", "--out", str(folder / "out"), *(word for text in settings for word in ("--set", text))]
    if name == "ray":
        return [[*words, *RAY, "--on-option", f"_temp_dir={folder}"]]
    return [[*words, "--part", f"{number}/{WORKERS}"] for number in range(1, WORKERS + 1)]


def _measured(commands: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Run the commands side by side; return seconds, and seconds of CPU of all their processes."""
    began = time.perf_counter()
    # Ray's workers have a lower priority by default, so other programs would slow down one side alone.
    ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **ray}
    used: dict[tuple[int, float], float] = {}  # by process; looked at while it runs, since Ray's daemons wait for none
    with tempfile.TemporaryFile("w+") as errors:
        processes = [
            subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=errors) for words in commands
        ]
        while any(process.poll() is None for process in processes):
            for each in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    times = each.cpu_times()
                    used[each.pid, each.create_time()] = times.user + times.system
            time.sleep(LOOK_SECONDS)
        took = time.perf_counter() - began
        if any(process.returncode for process in processes):
            errors.seek(0)
            raise RuntimeError(errors.read())
    return took, sum(used.values())
