"""Profile a command by operators: `python -P -m dhkd.benchmarks.operators train-student PRESET …`.

The command runs in this process under torch's profiler, which slows it down a little. It prints its usual output, and
the table of times follows on standard error.
"""

import os
import sys
from collections.abc import Callable
from time import perf_counter

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # torch reads this on import and reports missing GPUs at lower levels

from torch.profiler import ProfilerActivity, profile

# For each part, the prefixes of its operators' names; an operator belongs to the first part that matches.
PARTS = {
    "convolutions, backward": ("aten::convolution_backward", "aten::mkldnn_convolution_backward", "aten::cudnn_conv"),
    "convolutions, forward": ("aten::mkldnn_convolution", "aten::convolution", "aten::_convolution", "aten::conv2d"),
    "batch norm": ("aten::native_batch_norm", "aten::batch_norm", "aten::cudnn_batch_norm", "aten::_batch_norm"),
    "ReLU and residual sums": ("aten::relu", "aten::clamp_min", "aten::threshold_backward", "aten::add"),
    "rendering and gathering": ("aten::index",),
    "projection and update": ("aten::_foreach", "aten::_fused_sgd"),
}


def seconds_by_part(action: Callable[[], object]) -> tuple[dict[str, float], float]:
    """Measure the time that operators take by themselves, in seconds by part, and the elapsed seconds.

    "between operators" is the rest of the elapsed time. Operators in other threads are included.
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        began = perf_counter()
        action()
        passed = perf_counter() - began
    seconds: dict[str, float] = dict.fromkeys([*PARTS, "other operators"], 0.0)
    for event in profiled.key_averages():
        part = next((part for part, starts in PARTS.items() if event.key.startswith(starts)), "other operators")
        seconds[part] += event.self_cpu_time_total / 1e6
    seconds["between operators"] = max(0.0, passed - sum(seconds.values()))
    return seconds, passed


def _command() -> None:
    from dhkd.pipeline.cli import cli

    cli(sys.argv[1:], standalone_mode=False)


if __name__ == "__main__":
    seconds, passed = seconds_by_part(_command)
    for part, own_seconds in seconds.items():
        sys.stderr.write(f"{part:28}{own_seconds:8.2f} s {100 * own_seconds / passed:6.1f} %\n")
    sys.stderr.write(f"{'all':28}{passed:8.2f} s\n")
