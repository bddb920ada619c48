"""From the thread that launches a device's work to one that waits for its results.

A GPU is kept busy by whoever launches ahead of it; waiting for a batch's values, copying them and computing checksums
before the next batch is launched leaves it idle meanwhile. So a second thread does all of that, in order, a few batches
behind.
"""

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

UNDER_WAY = 4  # batches that may be launched or copied and not yet taken: what memory they need is bounded


class HandOver:
    """Gives tensors of `device` to functions that want them on the CPU, one after the other, in another thread."""

    def __init__(self, device: torch.device) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="taker")
        self._under_way: deque[Future[None]] = deque()
        # Copies in a stream of their own don't queue up behind the batches that were launched meanwhile.
        self._aside: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's

    def give(self, tensors: Mapping[str, Tensor], take: Callable[[dict[str, Tensor]], None]) -> Future[None]:
        """Have `take` called with copies of `tensors` on the CPU; waits while too many are under way.

        What an earlier call's `take` raised is raised here, at the latest when the context ends.
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
                copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # waits asleep
                copied.record(self._aside)
            copied.synchronize()  # the tensors are held until here, so that their memory isn't given to another batch
            tensors = copies
        take(tensors)

    def __enter__(self) -> "HandOver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown()  # what was launched before an interruption is taken, and its blocks are written
        if error is None:
            for taken in self._under_way:
                taken.result()
