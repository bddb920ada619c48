"""A few kills of the soak, to keep the script working; run it by itself for many."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "soak" / "kills.py"


@pytest.mark.slow
def test_stage_one_survives_random_kills() -> None:
    # In a new process: forks of this one would lack threads that other tests have started.
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), "--kills", "20", "--seed", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = re.match(r"20 kills: \d+ before a block was begun, (\d+) among blocks", done.stdout)
    assert counts, done.stdout
    assert int(counts[1]) >= 3, "kills have to come while blocks are written"
