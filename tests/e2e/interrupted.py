"""What tests need that interrupt a command: a cache of many blocks, and waiting for the moment."""

import subprocess
import time
from collections.abc import Callable

# Blocks that take a moment each, so that some are written and some are not when the command is interrupted.
MANY_BLOCKS = [
    *("--set", "cache.views=4", "--set", "cache.block_mb=0.0002", "--set", "cache.batch_size=4"),
    *("--set", "data.limit=240", "--set", "teacher=resnet8", "--cpu", "--precision", "float32"),
]

TIMEOUT = 120  # seconds


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for a condition that holds while the process still runs."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, f"it ended before it could be interrupted: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.01)
