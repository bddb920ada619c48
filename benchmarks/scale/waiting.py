"""How much processor time one message of a worker takes in the command, with Ray and many workers."""

import asyncio
import time
from typing import Any


class _Workers:
    """Stands for many workers: each call waits until it is told to answer."""

    def __init__(self) -> None:
        self._events: dict[int, asyncio.Event] = {}

    async def take(self, number: int) -> bytes:
        """Wait like a worker that computes, and answer as one that has ended a unit."""
        event = self._events.setdefault(number, asyncio.Event())
        await event.wait()
        del self._events[number]
        return bytes(300)

    async def answer(self, number: int) -> None:
        """Let one call answer."""
        self._events.setdefault(number, asyncio.Event()).set()


def seconds_for_a_message(workers: int, messages: int = 300) -> float:
    """Return the processor seconds of this process for one worker's answer and its next call, among so many workers.

    Ray runs on this machine, with one process for all simulated workers.
    """
    import ray

    ray.init(
        num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False, logging_level="error"
    )
    try:
        actor: Any = ray.remote(_Workers).options(max_concurrency=2 * workers).remote()  # Any: Ray's handle
        references = {actor.take.remote(number): number for number in range(workers)}
        ray.get(actor.answer.remote(0))
        began = 0.0
        for message in range(messages + 10):
            if message == 10:
                began = time.process_time()
            ready, _ = ray.wait(list(references), num_returns=1)
            ray.wait(list(references), num_returns=len(references), timeout=0)  # the engine takes all that are ready
            ray.get(ready)
            number = references.pop(ready[0])
            references[actor.take.remote(number)] = number
            actor.answer.remote((number + 1) % workers)
        return (time.process_time() - began) / messages
    finally:
        ray.shutdown()
