"""Where the time of an epoch goes, and how far its steps are from what the machine can do."""

from collections.abc import Callable
from time import perf_counter

import torch
from dhkd.benchmarks.figure import Figure, interleaved, middle
from dhkd.benchmarks.steps import RECIPE, STUDENT, TEACHER, Loop, stream_of
from dhkd.data.cache.reader import LogitReader
from dhkd.data.image_set import ImageSet
from dhkd.data.render import ResidentRenderer
from dhkd.data.stream import ResidentSignals
from dhkd.stages.processes import Processes
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

# From a part of a step to what its operators' names begin with; the first that fits counts.
PARTS = {
    "convolutions, backward": ("aten::convolution_backward", "aten::mkldnn_convolution_backward", "aten::cudnn_conv"),
    "convolutions, forward": ("aten::mkldnn_convolution", "aten::convolution", "aten::_convolution", "aten::conv2d"),
    "batch norm": ("aten::native_batch_norm", "aten::batch_norm", "aten::cudnn_batch_norm", "aten::_batch_norm"),
    "ReLU and residual sums": ("aten::relu", "aten::clamp_min", "aten::threshold_backward", "aten::add"),
    "rendering and gathering": ("aten::index",),
    "projection and update": ("aten::_foreach", "aten::_fused_sgd"),
}
MATRIX, COPIED = 2048, 2**28  # rows of a square matrix, bytes


def profiled(
    steps: int, rounds: int, batch_size: int, images: ImageSet, reader: LogitReader, processes: Processes
) -> list[Figure]:
    """Shares of an aligned student's steps by operators' own time, and its FLOP/s beside those of a matrix product."""
    renderer = ResidentRenderer(images, RECIPE, processes.device)
    resident = ResidentSignals(reader, {"logits": ["logits"]}, processes.device)
    loop = Loop("dhkd", stream_of(renderer, resident, batch_size), processes)
    for _ in range(2):
        loop.step()
    with FlopCounterMode(display=False) as flops:
        loop.step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        began = perf_counter()
        for _ in range(steps):
            loop.step()
        passed = perf_counter() - began
    seconds: dict[str, float] = dict.fromkeys([*PARTS, "other operators"], 0.0)
    for event in found.key_averages():
        part = next((part for part, starts in PARTS.items() if event.key.startswith(starts)), "other operators")
        seconds[part] += event.self_cpu_time_total / 1e6
    seconds["Python between operators"] = max(0.0, passed - sum(seconds.values()))
    detail = f"{STUDENT} ← {TEACHER}, dhkd, batch {batch_size}, {steps} steps, profiled"
    figures = [Figure(f"share: {part}", of_part / passed, "", detail) for part, of_part in seconds.items()]

    matrix = torch.rand(MATRIX, MATRIX, device=processes.device)
    block, into = torch.ones(COPIED, dtype=torch.uint8), torch.empty(COPIED, dtype=torch.uint8)
    actions: dict[str, Callable[[], object]] = {
        "step": loop.step,
        "product": lambda: matrix @ matrix,
        "copy": lambda: into.copy_(block),
    }
    times = interleaved(actions, rounds)
    detail = f"{STUDENT} ← {TEACHER}, dhkd, batch {batch_size}"
    of_step = flops.get_total_flops() / times["step"] / 1e9
    of_product = 2 * MATRIX**3 / times["product"] / 1e9
    return [
        *figures,
        middle("a step's FLOP/s", of_step, "GFLOP/s", f"{detail}, {flops.get_total_flops() / 1e9:.1f} GFLOP a step"),
        middle("a matrix product's FLOP/s", of_product, "GFLOP/s", f"{MATRIX} × {MATRIX}, float32"),
        middle("a step / a matrix product, FLOP/s", of_step / of_product, "×", detail),
        middle("copying memory", 2 * COPIED / times["copy"] / 1e9, "GB/s", "256 MiB, read and written"),
    ]
