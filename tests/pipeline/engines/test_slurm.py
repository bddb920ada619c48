"""What only the engine on Slurm does: its options, its needs, and jobs that start again or lose their command."""

import signal
import sys
import time
from pathlib import Path

import pytest
from dhkd.data.errors import ConfigError
from dhkd.pipeline.engines import slurm_job
from dhkd.pipeline.engines.base import Needs
from dhkd.pipeline.engines.choice import EngineOptions, engine_of
from dhkd.pipeline.engines.mail import Inbox, create, send
from dhkd.pipeline.engines.packed import packed
from dhkd.pipeline.engines.slurm_job import Beat, Done, Given, Interrupted, Job, Setting, Started, Stop
from dhkd.pipeline.engines.worker import Begun, Line, Told

from tests.engine_works import Acting, Unit

submitit = pytest.importorskip("submitit")

import pickle  # noqa: E402


def refusal(folder: Path, *options: str, on: str = "slurm:local", needs: Needs | None = None) -> str:
    with (
        pytest.raises(ConfigError) as refused,
        engine_of(EngineOptions(on, [f"folder={folder}/jobs", *options])) as engine,
    ):
        list(engine.run(Acting(folder), [Unit(1)], needs or Needs(), print))
    return str(refused.value)


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("timeout_min=soon", '--on-option: Parameter "timeout_min" expected type <class \'int\'> (but value: "soon")'),
        ("slurm_partitoin=gpu", "--on-option: Unknown argument 'partitoin' for executor 'slurm'"),
        ("nodes=2", "--on-option: LocalExecutor can use only one node"),
        ("speed=1", "--on-option: "),
        ("timeout_min=[", "--on-option timeout_min: expected a value in YAML, got '['"),
        ("timeout_min", "--on-option: expected KEY=VALUE, got 'timeout_min'"),
    ],
)
def test_an_option_that_submitit_refuses_is_one_line(tmp_path: Path, option: str, line: str) -> None:
    message = refusal(tmp_path, option)
    assert message.startswith(line)
    assert "\n" not in message
    assert not (tmp_path / "jobs").exists()


def test_a_part_of_a_gpu_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, needs=Needs(gpus=0.25))
    assert message.startswith("--gpus 0.25: expected a whole number with --on slurm, which doesn't divide GPUs; give")


def test_without_slurm_the_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    message = refusal(tmp_path, on="slurm")
    assert message.startswith("--on slurm: expected Slurm's commands on this machine, got Could not detect")
    assert list(tmp_path.iterdir()) == []


def test_without_submitit_the_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.delitem(sys.modules, "dhkd.pipeline.engines.slurm", raising=False)
    assert (
        refusal(tmp_path)
        == "--on slurm:local: expected submitit to be installed, found none; pip install 'dhkd[slurm]'"
    )


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("a file")
    assert refusal(tmp_path).startswith(f"{tmp_path}/jobs: expected a folder for jobs, on a file system that all")


def test_the_folder_of_jobs_is_removed_when_all_went_well(tmp_path: Path) -> None:
    with engine_of(EngineOptions("slurm:local", [f"folder={tmp_path}/jobs"])):
        [folder] = (tmp_path / "jobs").iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700  # it holds pickles
    assert not (tmp_path / "jobs").exists()


# a job, in this process


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job whose command gives signs of life in this test only."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "works").mkdir()
    setting = Setting(pickle.dumps(packed(Acting(tmp_path / "works"))), 1, str(tmp_path))
    (tmp_path / slurm_job.WORK).write_bytes(pickle.dumps(setting))
    for name in (slurm_job.COMMAND, "w.given", "w.said"):
        create(tmp_path / name)
    return Job(tmp_path, "w")


def said(job: Job) -> list[object]:
    return [record for record in Inbox(job.folder / "w.said").new() if not isinstance(record, Beat | Line | Told)]


def test_a_job_whose_command_is_gone_ends(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_job, "GONE_SECONDS", 0.5)
    job()
    assert said(job) == [Started(slurm_job.node_name()), Begun()]


def test_a_job_that_starts_again_leaves_the_units_of_before(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_job, "GONE_SECONDS", 0.5)
    send(job.folder / "w.given", Given(1, Unit(1)))
    with (job.folder / "w.said").open("ab") as file:
        file.write(b"\0\0\0")  # the process before was killed while it wrote
    job()
    assert said(job) == [Started(slurm_job.node_name()), Begun()]


def test_a_job_that_slurm_interrupts_says_so_and_starts_again(job: Job) -> None:
    def interrupt(unit: Unit) -> int:
        again = job.checkpoint()  # as submitit does in its handler of the signal
        assert again.function == Job(job.folder, "w")
        raise SystemExit(-1)

    given = Inbox(job.folder / "w.given")
    send(job.folder / "w.given", Given(7, Unit(7)))
    with pytest.raises(SystemExit):
        job._do_units(interrupt, given)
    assert said(job) == [Interrupted()]


def test_a_job_stops_at_once_when_it_is_told_to(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_job, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(Acting, "begun", _stopped_while_waiting(job))
    with pytest.raises(KeyboardInterrupt):
        job()
    assert not any(isinstance(record, Done) for record in said(job))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    time.sleep(0.2)  # nothing interrupts this any more


def _stopped_while_waiting(job: Job) -> object:
    """Let the job be told to stop while it does its first unit."""
    begun = Acting.begun

    def begin(self: Acting, tell: object) -> object:
        send(job.folder / "w.given", Given(1, Unit(1, "wait")))
        send(job.folder / "w.given", Stop(at_once=True))
        return begun(self, tell)  # type: ignore[arg-type]

    return begin
