"""The compute processes of a run: their ranks, devices and communication.

This module is the only wrapper of Accelerate's `Accelerator`.

Accelerate detects how the program was started (as a single process, by `accelerate launch` or by `torchrun`) and
prepares model and optimizer. Its data loader is not used, because it would repeat samples to make all batches equally
large.
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, broadcast_object_list, gather_object
from dhkd.data.errors import ConfigError
from torch import Tensor, nn

Precision = Literal["float32", "bf16", "fp16"]
T = TypeVar("T")


def resolve_precision(precision: str, cpu: bool) -> Precision:
    """Return the precision to compute in. `auto` is bf16 if the hardware computes bf16 natively, otherwise float32.

    If `cpu` is true, a GPU is ignored. Emulated bf16 is slower than float32; on CPUs without bf16 instructions, bf16 is
    more than ten times slower. Raises `ConfigError` for an unknown precision and for fp16 without a GPU.
    """
    on_gpu = torch.cuda.is_available() and not cpu
    if precision == "auto":
        native = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else _cpu_has_bf16()
        return "bf16" if native else "float32"
    if precision == "fp16" and not on_gpu:
        raise ConfigError("precision fp16: expected a GPU, found none; use --precision bf16 or float32")
    if precision not in ("float32", "bf16", "fp16"):
        raise ConfigError(f"precision: expected auto, float32, bf16 or fp16, got {precision!r}")
    return cast(Precision, precision)


def _cpu_has_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


class Processes:
    """The processes that run one command together."""

    def __init__(self, precision: Precision, cpu: bool = False) -> None:
        self.precision = precision
        if precision == "float32":  # TF32 would keep only ten bits of each factor
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        # Without a GPU, Accelerate needs `cpu=True`. Otherwise each process that `torchrun` starts would act as the
        # only process and do all the work.
        self.accelerator = Accelerator(
            mixed_precision="no" if precision == "float32" else precision,
            cpu=cpu or not torch.accelerator.is_available(),
            dataloader_config=DataLoaderConfiguration(),
        )
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.world_size: int = self.accelerator.num_processes
        self.is_first: bool = self.accelerator.is_main_process
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started != self.world_size:
            raise ConfigError(
                f"processes: expected {started} to work together, as WORLD_SIZE says, found {self.world_size};"
                f" start them with 'torchrun' or 'accelerate launch'"
            )

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrap model and optimizer with Accelerate.

        The model is moved to the device and runs under autocast, and DDP (torch's DistributedDataParallel) averages its
        gradients over the processes.
        """
        prepared, optimizer = self.accelerator.prepare(model, optimizer)
        return prepared, optimizer

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which a network computes in this run's precision."""
        return cast(AbstractContextManager[Any], self.accelerator.autocast())

    def unsynchronized(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Return a context in which DDP (see `prepare`) does not average gradients."""
        if self.world_size == 1:
            return nullcontext()
        return cast(AbstractContextManager[Any], self.accelerator.no_sync(model))

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes; the tensor must have the same shape in each."""
        return cast(Tensor, self.accelerator.reduce(values, reduction="sum")) if self.world_size > 1 else values

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all processes, in place."""
        if self.world_size == 1:
            return
        # All tensors are sent in one message, because many small messages would cost more than this copy.
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.world_size
        for tensor, mean in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view(tensor.shape))

    def share_buffers(self, module: nn.Module) -> None:
        """Copy the first process's buffers to all other processes.

        This is needed because the running statistics of batch norm differ between processes.
        """
        if self.world_size > 1:
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss, multiplied by the gradient scaler's factor under fp16 and unchanged otherwise."""
        scaler = self.accelerator.scaler
        return loss if scaler is None else cast(Tensor, scaler.scale(loss))

    def clip(self, model: nn.Module, max_norm: float) -> None:
        """Clip the joint norm of all gradients; under fp16, first divide them by the gradient scaler's factor."""
        self.accelerator.clip_grad_norm_(model.parameters(), max_norm)

    def step_was_skipped(self, optimizer: torch.optim.Optimizer) -> bool:
        """Return whether the optimizer skipped its last step because a gradient overflowed under fp16."""
        return bool(getattr(optimizer, "step_was_skipped", False))

    # The type is Any because the values of the other processes are ignored; usually these values are None.
    def broadcast(self, value: Any) -> Any:
        """Return the first process's value, in every process."""
        return broadcast_object_list([value])[0] if self.world_size > 1 else value

    def gather(self, values: list[T]) -> set[T]:
        """Return the distinct values in the lists of all processes."""
        return set(gather_object(values) if self.world_size > 1 else values)

    def collect(self, value: T) -> list[T]:
        """Return the values of all processes, ordered by rank, in every process."""
        return list(gather_object([value])) if self.world_size > 1 else [value]

    def wait(self) -> None:
        """Wait until every process has called this."""
        self.accelerator.wait_for_everyone()

    def end(self) -> None:
        """Close the process group, so that this interpreter can create another `Processes`."""
        self.accelerator.end_training()
        self.accelerator.free_memory()
        AcceleratorState._reset_state(reset_partial_state=True)


def joined(rows: Tensor) -> Tensor:
    """Return the rows of all processes, ordered by rank, in every process.

    Gradients flow only into this process's rows. `rows` is (R, …), and R may differ between processes. A process that
    runs alone gets `rows` itself.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return rows
    world_size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    lengths = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size)]
    torch.distributed.all_gather(lengths, torch.tensor([len(rows)], device=rows.device))
    counts = [int(length) for length in lengths]
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([rows if part == rank else parts[part][: counts[part]] for part in range(world_size)])
