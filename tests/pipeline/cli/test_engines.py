"""The options of --on: what is refused before anything is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.command_line import assert_one_line, dhkd

WORDS = ("sweep", "digits", "--set", "objective=ce", "--seeds", 1, "--cpu", "--track", "none")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--cpus", 2), "--on-option, --cpus, --gpus, --memory and --tasks are for --on"),
        (("--on", "here", "--tasks", 2), "--on-option, --cpus, --gpus, --memory and --tasks are for --on"),
        (("--on", "spark"), "--on: expected here, ray, ray://HOST:PORT, slurm or slurm:local, got 'spark'"),
        (("--on", "ray", "--on-option", "address"), "--on-option: expected KEY=VALUE, got 'address'"),
        (("--on", "ray", "--on-option", "nonsense=1"), "Unknown keyword argument(s): nonsense"),
    ],
)
def test_wrong_options(options: tuple[object, ...], says: str, tmp_path: Path) -> None:
    outcome = dhkd(*WORDS, "--out", tmp_path, *options)
    assert outcome.code == 2
    assert says in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(tmp_path.glob("seed=0/*"))


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "dhkd.pipeline.engines.ray", raising=False)
    monkeypatch.delitem(sys.modules, "dhkd.pipeline.engines.ray_nodes", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = dhkd(*WORDS, "--out", tmp_path, "--on", "ray")
    assert_one_line(outcome, 2, ["--on ray: expected ray to be installed, found none; pip install 'dhkd[ray]'"])


def test_help_and_runs_here_import_no_engine() -> None:
    code = (
        "import sys; from dhkd.pipeline.cli import cli; import dhkd.pipeline.sweep;"
        " sys.exit('ray' in sys.modules or 'submitit' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
