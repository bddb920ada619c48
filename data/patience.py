"""How often and how long a request is repeated before a store or a server counts as unreachable."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

_RANDOM = random.SystemRandom()  # not seeded, so that processes started alike wait for different times


@dataclass(frozen=True)
class Patience:
    """How often and for how long a request is retried before a failing or slow store counts as unreachable."""

    retries: int = 14  # all waits together last about 100 s: a store that refuses for a minute ends nothing
    total_s: float = 180.0  # no retry starts later than this after the first attempt
    first_wait_s: float = 0.1  # doubled with each retry
    longest_wait_s: float = 15.0
    asked_s: float = 900.0  # all waits together that a server may ask for; a hub counts requests over five minutes
    connect_s: float = 10.0
    # The longest wait for the next byte of an answer. The answer to an upload comes only at its end, so the whole
    # upload must take less than this: 60 MB at 1 MB/s.
    stall_s: float = 60.0

    def waits(self) -> Iterator[float]:
        """Yield the seconds to wait before each retry, randomised so that many processes don't retry at once."""
        for retry in range(self.retries):
            yield min(self.first_wait_s * 2**retry, self.longest_wait_s) * _RANDOM.uniform(0.7, 1.0)


PATIENCE = Patience()
