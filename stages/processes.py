"""Which process am I, on which device, and how do processes agree: the one wrapper around Accelerate's `Accelerator`.

Accelerate finds out how it was started (alone, `accelerate launch`, `torchrun`), and prepares model and
optimizer. It does not shard data here: its loader would repeat samples to even batches out.
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
    """What `auto` means here: bf16 where the hardware computes it natively, else float32.

    Emulated bf16 is slower than float32, on CPUs without such instructions by more than ten times.
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
        if precision == "float32":  # and no less: TF32 keeps ten bits of a factor
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        # Without a GPU, Accelerate has to be told so: else each process that `torchrun` starts takes itself for the
        # only one, and does all the work.
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
        """Model and optimizer as Accelerate runs them: on the device, under autocast, averaged over the processes."""
        prepared, optimizer = self.accelerator.prepare(model, optimizer)
        return prepared, optimizer

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which a network computes in this run's precision."""
        return cast(AbstractContextManager[Any], self.accelerator.autocast())

    def unsynchronized(self, model: nn.Module) -> AbstractContextManager[Any]:
        """A context in which gradients are not averaged as they arise."""
        if self.world_size == 1:
            return nullcontext()
        return cast(AbstractContextManager[Any], self.accelerator.no_sync(model))

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of a tensor of one shape."""
        return cast(Tensor, self.accelerator.reduce(values, reduction="sum")) if self.world_size > 1 else values

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all processes, in place."""
        if self.world_size == 1:
            return
        # One message: many small ones cost more than the copy.
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.world_size
        for tensor, mean in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view(tensor.shape))

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the first one's buffers: batch norm's running statistics differ between processes."""
        if self.world_size > 1:
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def scale(self, loss: Tensor) -> Tensor:
        """The loss as it is differentiated: times the gradient scaler's factor under fp16, else unchanged."""
        scaler = self.accelerator.scaler
        return loss if scaler is None else cast(Tensor, scaler.scale(loss))

    def clip(self, model: nn.Module, max_norm: float) -> None:
        """Clip the norm of all gradients together, undoing fp16's scale first."""
        self.accelerator.clip_grad_norm_(model.parameters(), max_norm)

    def step_was_skipped(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the last step was left out because a gradient overflowed under fp16."""
        return bool(getattr(optimizer, "step_was_skipped", False))

    def broadcast(self, value: Any) -> Any:
        """The first process's value, in every process."""
        return broadcast_object_list([value])[0] if self.world_size > 1 else value

    def gather(self, values: list[Any]) -> set[Any]:
        """The different values of all processes' lists."""
        return set(gather_object(values) if self.world_size > 1 else values)

    def collect(self, value: T) -> list[T]:
        """Every process's value, in every process."""
        return list(gather_object([value])) if self.world_size > 1 else [value]

    def wait(self) -> None:
        """Until every process is here."""
        self.accelerator.wait_for_everyone()

    def end(self) -> None:
        """Close the process group, so that another `Processes` may follow in this interpreter."""
        self.accelerator.end_training()
        self.accelerator.free_memory()
        AcceleratorState._reset_state(reset_partial_state=True)


def joined(mine: Tensor) -> Tensor:
    """The rows of all processes, one after the other by rank, in every process; gradients reach a process's own alone.

    `mine` is (rows, …), and shares may differ in rows. Alone, it is what comes back.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return mine
    world_size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    lengths = [torch.zeros(1, dtype=torch.int64, device=mine.device) for _ in range(world_size)]
    torch.distributed.all_gather(lengths, torch.tensor([len(mine)], device=mine.device))
    rows = [int(length) for length in lengths]
    padded = mine.new_zeros((max(rows), *mine.shape[1:]))
    padded[: len(mine)] = mine.detach()
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([mine if part == rank else parts[part][: rows[part]] for part in range(world_size)])
