"""A simulated bucket: it keeps which objects exist, and says when a request to it is answered."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from dhkd.benchmarks.scale.clock import Queue

LISTED_AT_A_TIME = 1000  # objects in the answer to one LIST request of S3, GCS or Azure (5,000)
Kind = Literal["PUT", "GET", "HEAD", "LIST"]


@dataclass(frozen=True)
class Limits:
    """What a bucket gives; the defaults are usual for one prefix of S3 and a machine on a network of 10 Gbit/s."""

    latency_s: float = 0.03
    bytes_per_s: float = 20e9  # of all workers together
    worker_bytes_per_s: float = 500e6
    writes_per_s: float = 3500.0
    reads_per_s: float = 5500.0


class SimulatedBucket:
    """A storage whose objects have sizes and no bytes. Real code lists it; requests take simulated time."""

    location, streams = "simulated://bucket", 8

    def __init__(self, limits: Limits) -> None:
        self.limits, self.objects = limits, dict[str, int]()
        self.requests: Counter[Kind] = Counter()
        self.bytes_sent = self.bytes_read = 0
        self._network, self._writes, self._reads = Queue(), Queue(), Queue()

    def answered(self, now: float, kind: Kind, num_bytes: int = 0, number: int = 1) -> float:
        """Return the moment when `number` requests, made one after the other, with these bytes in all, are answered."""
        self.requests[kind] += number
        writes = kind == "PUT"
        self.bytes_sent, self.bytes_read = (
            (self.bytes_sent + num_bytes, self.bytes_read) if writes else (self.bytes_sent, self.bytes_read + num_bytes)
        )
        queue, rate = (self._writes, self.limits.writes_per_s) if writes else (self._reads, self.limits.reads_per_s)
        admitted = queue.serve(now, number / rate)
        carried = self._network.serve(now, num_bytes / self.limits.bytes_per_s)
        alone = now + number * self.limits.latency_s + num_bytes / self.limits.worker_bytes_per_s
        return max(admitted, carried, alone)

    @property
    def busy_seconds(self) -> dict[str, float]:
        """For how long each of its limits would be taken up without a pause."""
        return {"network": self._network.busy, "writes": self._writes.busy, "reads": self._reads.busy}

    def sizes(self) -> dict[str, int]:
        """Return every object's size, by key."""
        return self.objects

    def stamps(self) -> dict[str, str]:
        """Return every object's size as its stamp, by key: an object never changes without it."""
        return {key: str(size) for key, size in self.objects.items()}

    def size(self, key: str) -> int:
        """Return the object's size in bytes, or -1 if there is no such object."""
        return self.objects.get(key, -1)

    def get(self, key: str, largest: int = 0) -> bytes:
        """Raise `FileNotFoundError`: nothing is kept but sizes, and there is no index yet."""
        raise FileNotFoundError(key)

    def put(self, key: str, content: bytes, *, replace: bool) -> bool:
        """Keep the size of the object; return whether it was created or replaced."""
        if key in self.objects and not replace:
            return False
        self.objects[key] = len(content)
        return True

    def delete(self, key: str) -> None:
        """Remove the object, if it exists."""
        self.objects.pop(key, None)
