"""The compute processes of a run: their ranks, devices and communication.

This module is the only wrapper of Accelerate's `Accelerator`.

Accelerate detects how the program was started (as a single process, by `accelerate launch` or by `torchrun`) and
prepares model and optimizer. Its data loader is not used, because it would repeat samples to make all batches equally
large.
"""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    broadcast_object_list,
    gather_object,
)
from dhkd.data.errors import ConfigError, DhkdError, ProcessError
from dhkd.stages.watch import Watch
from torch import Tensor, nn

Precision = Literal["float32", "bf16", "fp16"]
T = TypeVar("T")


FIND_SECONDS = 30.0  # how long to look for the process behind a connection that broke


def resolve_precision(precision: str, cpu: bool) -> tuple[Precision, str | None]:
    """Return the precision to compute in and, if `precision` is `auto`, the reason for the choice.

    `auto` is bf16 if the hardware computes bf16 faster than float32, otherwise float32. If `cpu` is true, a GPU is
    ignored. Raises `ConfigError` for an unknown precision and for fp16 without a GPU.
    """
    on_gpu = torch.cuda.is_available() and not cpu
    if precision == "auto":
        if on_gpu:
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            return ("bf16", "this GPU computes bf16") if native else ("float32", "this GPU would emulate bf16")
        return cpu_precision(cpu_capabilities())
    if precision == "fp16" and not on_gpu:
        raise ConfigError("precision fp16: expected a GPU, found none; use --precision bf16 or float32")
    if precision not in ("float32", "bf16", "fp16"):
        raise ConfigError(f"precision: expected auto, float32, bf16 or fp16, got {precision!r}")
    return cast(Precision, precision), None


# Any: torch's table of plain values
def cpu_capabilities() -> Mapping[str, Any]:
    """Return what torch knows of the CPU; before version 2.11, that is only whether it has AMX."""
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities: Mapping[str, Any] = torch.cpu.get_capabilities()
        return capabilities
    return {"amx_bf16": torch.cpu._is_amx_tile_supported()}


def cpu_precision(capabilities: Mapping[str, Any]) -> tuple[Precision, str]:  # Any: torch's table of plain values
    """Return the faster precision of a CPU with these `cpu_capabilities`, and the reason.

    Only AMX multiplies matrices in bf16 faster than in float32. With the bf16 instructions of AVX-512 alone, resnet56
    classifies 0.70 times as many images a second as in float32, and resnet20 trains on 0.84 times as many. Without such
    instructions, bf16 is several times slower.
    """
    if capabilities.get("amx_bf16"):
        return "bf16", "this CPU has AMX, which computes bf16 faster"
    return "float32", "this CPU has no AMX, without which bf16 is slower"


@contextmanager
def apart_from_accelerate() -> Iterator[None]:
    """Set Accelerate's state aside for the `with` block, and restore it afterwards, for programs that use Accelerate.

    Every `Accelerator` of a process shares precision and device with the first one. The first one that is created
    inside the block starts afresh.
    """
    shared = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        yield
    finally:
        for state, values in zip(shared, before, strict=True):
            state.clear()
            state.update(values)


@contextmanager
def watched() -> Iterator[Watch | None]:
    """Watch over the processes that a launcher started with this one, if any, while the context lasts.

    An error in this process is told to the others. If a connection breaks because another process ended, raises
    `ProcessError`, which names that process.
    """
    watch = Watch.of_environment()
    if watch is None:
        yield None
        return
    watch.start()
    try:
        yield watch
    except BaseException as error:
        # Libraries raise RuntimeError if a connection breaks; errors that a user can cause are DhkdErrors.
        broken = isinstance(error, RuntimeError) and not isinstance(error, DhkdError)
        lost = watch.lost(FIND_SECONDS) if broken and _is_of_connection(error) else None
        if lost is not None:
            raise watch.error(lost) from error
        if broken and _is_of_connection(error):
            raise ProcessError(f"processes: the connection to another one broke ({_first_line(error)})") from error
        watch.tell(f"ended: {_first_line(error)}")
        raise
    finally:
        watch.stop()


def _is_of_connection(error: BaseException) -> bool:
    words = ("connection", "gloo", "nccl", "timed out", "timeout", "broken pipe", "socket", "tcpstore")
    return any(word in str(error).lower() for word in words)


def _first_line(error: BaseException) -> str:
    text = str(error) if isinstance(error, DhkdError) else f"{type(error).__name__}: {error}"
    return (text.splitlines() or [""])[0]


class Processes:
    """The processes that run one command together."""

    def __init__(self, precision: Precision, cpu: bool = False, watch: Watch | None = None) -> None:
        self.precision, self._watch = precision, watch
        # TF32 would keep only ten bits of each factor. A live teacher may compute in float32 beside a student in bf16.
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

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, find_unused: bool = False
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrap model and optimizer with Accelerate.

        The model is moved to the device and runs under autocast, and DDP (torch's DistributedDataParallel) averages its
        gradients over the processes. With `find_unused`, some parameters may have no gradient.
        """
        if find_unused:  # not always, because DDP then searches the autograd graph in every step
            self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
            warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")  # where all have gradients
        prepared, optimizer = self.accelerator.prepare(model, optimizer)
        return prepared, optimizer

    def autocast(self, precision: Precision | None = None) -> AbstractContextManager[Any]:
        """Return the context in which a network computes in this precision; None stands for the run's precision."""
        dtype = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision or self.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def unsynchronized(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Return a context in which DDP (see `prepare`) does not average gradients."""
        if self.world_size == 1:
            return nullcontext()
        return cast(AbstractContextManager[Any], self.accelerator.no_sync(model))

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes; the tensor must have the same shape in each."""
        self._meet()
        return cast(Tensor, self.accelerator.reduce(values, reduction="sum")) if self.world_size > 1 else values

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all processes, in place."""
        if self.world_size == 1:
            return
        self._meet()
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
        self.share(module.buffers())

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first process's values of these tensors to all other processes, in place."""
        self._meet()
        if self.world_size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

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
        self._meet()
        return broadcast_object_list([value])[0] if self.world_size > 1 else value

    def gather(self, values: list[T]) -> set[T]:
        """Return the distinct values in the lists of all processes."""
        self._meet()
        return set(gather_object(values) if self.world_size > 1 else values)

    def collect(self, value: T) -> list[T]:
        """Return the values of all processes, ordered by rank, in every process."""
        self._meet()
        return list(gather_object([value])) if self.world_size > 1 else [value]

    def wait(self) -> None:
        """Wait until every process has called this."""
        self._meet()
        self.accelerator.wait_for_everyone()

    def part(self) -> None:
        """Wait until every process has called this, and end the watch over each other; no meeting may follow."""
        self.wait()
        if self._watch is not None:
            self._watch.stop()

    def _meet(self) -> None:
        if self._watch is not None:
            self._watch.meet()

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
