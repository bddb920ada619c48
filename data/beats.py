"""Signs of life: a function that a process calls every few seconds, for others to see that it still runs."""

import threading
from collections.abc import Callable


class Beats:
    """Calls `beat` every `seconds`, in a thread, because the process may be busy for longer than that."""

    def __init__(self, beat: Callable[[], None], seconds: float) -> None:
        self._beat, self._seconds = beat, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="beats", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop, after the call that is being made."""
        self._ended.set()
        self._thread.join()

    def _go_on(self) -> None:
        while not self._ended.wait(self._seconds):
            self._beat()
