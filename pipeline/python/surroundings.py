"""Restores what a call changes in the process: random generators, torch's and Accelerate's settings, the environment.

A notebook continues after a call, with its own networks, generators and trainers.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from dhkd.data.notebook import shown_in_notebook
from dhkd.data.own_code import changes_allowed
from dhkd.stages.processes import apart_from_accelerate


@contextmanager
def undisturbed(*, allow_changed_code: bool = False) -> Iterator[None]:
    """Run the `with` block with the settings that dhkd expects, and restore the previous ones when it ends."""
    variables, generator = dict(os.environ), random.getstate()
    threads, dtype, device = torch.get_num_threads(), torch.get_default_dtype(), torch.get_default_device()
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with (
        torch.random.fork_rng(),
        torch.inference_mode(False),
        torch.enable_grad(),
        apart_from_accelerate(),
        changes_allowed(allow_changed_code),
        shown_in_notebook(),
    ):
        try:
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_default_device(None if device.type == "cpu" else device)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
            random.setstate(generator)
            _restore(variables)


def _restore(variables: dict[str, str]) -> None:
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    for name, value in variables.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
