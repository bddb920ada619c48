"""Handing results over from the thread that launches a device's work to a thread that waits for the results.

A GPU stays busy only if batches are launched ahead of it. If the launching thread waited for a batch's values, copied
them and computed checksums before it launched the next batch, the GPU would be idle meanwhile. So a second thread does
all of that, in order, a few batches behind.
"""

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

UNDER_WAY = 4  # the most batches that are launched or being copied but not yet taken, which limits their memory


class HandOver:
    """Copies tensors from `device` to the CPU and passes them to functions, one after the other, in another thread."""

    def __init__(self, device: torch.device) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="taker")
        self._under_way: deque[Future[None]] = deque()
        # With a separate stream, copies don't queue up behind the batches that were launched in the meantime.
        self._aside: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # untyped in torch

    def give(self, tensors: Mapping[str, Tensor], take: Callable[[dict[str, Tensor]], None]) -> Future[None]:
        """Call `take` in the other thread with copies of `tensors` on the CPU; return the call's future.

        Waits first while `UNDER_WAY` batches are not yet taken. An error that an earlier `take` raised is raised by
        this method, or at the latest when the context ends.
        """
        while len(self._under_way) >= UNDER_WAY:
            self._under_way.popleft().result()
        ready = torch.cuda.current_stream(self._aside.device).record_event() if self._aside else None
        self._under_way.append(self._thread.submit(self._pass_on, dict(tensors), ready, take))
        return self._under_way[-1]

    def _pass_on(
        self, tensors: dict[str, Tensor], ready: torch.cuda.Event | None, take: Callable[[dict[str, Tensor]], None]
    ) -> None:
        if self._aside is not None and ready is not None:
            with torch.cuda.stream(self._aside):
                self._aside.wait_event(ready)
                copies = {
                    name: torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
                    for name, tensor in tensors.items()
                }
                copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # waits without using the CPU
                copied.record(self._aside)
            copied.synchronize()  # the tensors are held until it returns, so that no other batch gets their memory
            tensors = copies
        take(tensors)

    def __enter__(self) -> "HandOver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown()  # batches launched before an interruption are still taken, and their blocks written
        if error is None:
            for taken in self._under_way:
                taken.result()
