"""The engine on Slurm: jobs, submitted through submitit, are workers that begin the work once and do many units.

The command gives units to jobs, and hears what they say, through files in a folder on a file system that the nodes
share. Jobs that wait in Slurm's queue hold no units; a job that starts late takes what is left. submitit's local
executor runs the same jobs as processes of this machine.
"""

import contextlib
import logging
import math
import os
import pickle
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import submitit
from dhkd.data.beats import Beats
from dhkd.data.errors import ConfigError
from dhkd.data.shown import line_of
from dhkd.pipeline.engines import slurm_job
from dhkd.pipeline.engines.base import Ended, Hear, Needs, Work
from dhkd.pipeline.engines.choice import SLURM, EngineOptions
from dhkd.pipeline.engines.packed import packed
from dhkd.pipeline.engines.slurm_job import Job, Setting
from dhkd.pipeline.engines.slurm_pool import Pool
from dhkd.pipeline.limits import available_cores

log = logging.getLogger("dhkd")

U = TypeVar("U")
R = TypeVar("R")

FOLDER = "dhkd-jobs"  # in the current folder, unless an option says otherwise
MOST_JOBS = 200  # at a time, unless --tasks says otherwise; clusters limit how many a user may submit
MINUTES = 24 * 60  # of a job, unless an option says otherwise; submitit's own default is five
TIMES_INTERRUPTED = 1000  # how often a job may start again after its time limit

# What submitit takes when an executor is made, rather than as a parameter of jobs.
_CONSTRUCTOR = ("slurm_python", "local_python", "slurm_max_pickle_size_gb", "local_max_pickle_size_gb")

Values = Mapping[str, Any]  # plain values, as YAML has them: options of submitit


class SlurmEngine:
    """Runs units in jobs of Slurm, or of submitit's local executor."""

    def __init__(self, executor: Any, values: Values, tasks: int | None) -> None:
        """`executor` is submitit's AutoExecutor, and `values` the user's parameters for it."""
        self._executor, self._values, self._tasks = executor, values, tasks
        self.has_lost = False  # whether any worker was lost, so that its log may be of interest

    @property
    def has_gpus(self) -> bool:
        """Whether any node has a GPU, as far as Slurm says."""
        if self._executor.cluster != SLURM:
            return Path("/dev/nvidia0").exists()
        command = ["sinfo", "--noheader", "--format=%G"]
        return "gpu" in subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def run(self, work: Work[U, R], units: Sequence[U], needs: Needs, hear: Hear) -> Iterator[Ended[U, R]]:
        """Yield every unit as it ends, as the contract says. Raises `ConfigError` for needs that Slurm can't meet."""
        submitter = Submitter(self._executor, {**_parameters(needs), **self._values})
        most = self._tasks or (MOST_JOBS if self._executor.cluster == SLURM else _most_here(needs))
        setting = Setting(pickle.dumps(packed(work)), max(1, round(needs.cpus)), os.getcwd())
        folder = Path(tempfile.mkdtemp(prefix="mail-", dir=self._executor.folder))
        (folder / slurm_job.WORK).write_bytes(pickle.dumps(setting))
        pool: Pool[U, R] = Pool(submitter, folder, units, hear, most)
        with _signs_of_life(folder / slurm_job.COMMAND), pool.closing():
            yield from pool.ended()
        self.has_lost |= pool.has_lost


@contextmanager
def slurm_engine(options: EngineOptions) -> Iterator[SlurmEngine]:
    """Prepare a folder for jobs, which is removed unless something went wrong.

    Raises `ConfigError` if Slurm's commands are not here, and for an option that submitit refuses.
    """
    logging.getLogger("submitit").handlers.clear()  # it prints on standard output, which is for results
    values = dict(options.values)
    parent = Path(str(values.pop("folder", FOLDER))).expanduser().absolute()
    folder = _made(parent)
    cluster = "local" if options.on != SLURM else SLURM
    made_with = {key: values.pop(key) for key in list(values) if key in _CONSTRUCTOR}
    try:
        executor = submitit.AutoExecutor(folder, cluster, slurm_max_num_timeout=TIMES_INTERRUPTED, **made_with)
    except RuntimeError as error:
        _remove(folder, parent)
        raise ConfigError(
            f"--on {options.on}: expected Slurm's commands on this machine, got {line_of(error)}; give the command"
            f" where you can give sbatch, or try it with --on {SLURM}:local"
        ) from error
    try:
        Submitter(executor, values)
    except ConfigError:
        _remove(folder, parent)
        raise
    engine = SlurmEngine(executor, values, options.tasks)
    keeps = True
    try:
        yield engine
        keeps = engine.has_lost
    finally:
        if keeps:
            log.info("slurm: the logs of the jobs are kept in %s", folder)
        else:
            _remove(folder, parent)


def _made(parent: Path) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=parent))
    except OSError as error:
        raise ConfigError(
            f"{parent}: expected a folder for jobs, on a file system that all nodes see, got {line_of(error)}; name"
            " another one with --on-option folder=PATH"
        ) from error


def _remove(folder: Path, parent: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        parent.rmdir()  # unless others are in it


def _parameters(needs: Needs) -> dict[str, Any]:  # plain values
    """Return submitit's parameters for what a worker needs."""
    if needs.gpus != int(needs.gpus):
        raise ConfigError(
            f"--gpus {needs.gpus:g}: expected a whole number with --on {SLURM}, which doesn't divide GPUs; give"
            " --gpus 1, and let each task of a sweep train several students side by side (--together)"
        )
    gpus = {"gpus_per_node": int(needs.gpus)} if needs.gpus else {}
    memory = {} if needs.memory_gb is None else {"mem_gb": needs.memory_gb}
    return {"name": "dhkd", "timeout_min": MINUTES, "cpus_per_task": math.ceil(needs.cpus), **gpus, **memory}


def _most_here(needs: Needs) -> int:
    return max(1, int(available_cores() / needs.cpus))


@contextmanager
def _signs_of_life(file: Path) -> Iterator[None]:
    """Append to a file again and again while the context lasts, so that jobs see that the command runs."""

    def beat() -> None:
        # After an error, such as that of a full disk, the next one may be seen.
        with contextlib.suppress(OSError), file.open("ab") as signs:
            signs.write(b".")

    file.touch()
    beats = Beats(beat, slurm_job.BEAT_SECONDS)
    try:
        yield
    finally:
        beats.end()


class Submitter:
    """Submits jobs with submitit, and keeps them away from nodes that can't work."""

    def __init__(self, executor: Any, values: Values) -> None:
        self.is_local = executor.cluster != SLURM
        self._executor = executor
        self._excluded = [str(values["slurm_exclude"])] if values.get("slurm_exclude") else []
        try:
            executor.update_parameters(**values)
        except (NameError, ValueError, TypeError, AssertionError) as error:
            raise ConfigError(f"--on-option: {line_of(error)}") from error

    def exclude(self, node: str) -> None:
        """Submit no more jobs to a node."""
        if self.is_local:
            return
        self._excluded.append(node)
        self._executor.update_parameters(slurm_exclude=",".join(self._excluded))

    def submit(self, jobs: Sequence[Job]) -> list[Any]:
        """Submit jobs, as one array if there are several. Raises `ConfigError` with Slurm's reason if it refuses."""
        try:
            with self._executor.batch():
                submitted = [self._executor.submit(job) for job in jobs]
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise ConfigError(
                f"--on {SLURM}: expected {len(jobs)} jobs to be accepted, got {line_of(error)}; see --on-option"
                " (slurm_partition, timeout_min, …) and --tasks"
            ) from error
        return submitted
