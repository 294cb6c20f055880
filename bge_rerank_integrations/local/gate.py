"""A bound on the batches of a device, first come, first served.

`threading.Semaphore` lets a thread that has just left overtake those that wait, so with many
callers some requests would take several times as long as others.
"""

import threading
from collections import deque


class Gate:
    """Lets `places` threads in at once, in the order in which they came."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: deque[threading.Lock] = deque()
        self._lock = threading.Lock()

    def enter(self, timeout: float | None = None) -> bool:
        """Wait for a place; False if there was none within this many seconds."""
        with self._lock:
            if self._free:  # nobody waits while a place is free
                self._free -= 1
                return True
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        if turn.acquire(timeout=-1 if timeout is None else timeout):
            return True
        with self._lock:
            if turn not in self._waiting:  # its turn came as the time ended
                return True
            self._waiting.remove(turn)
            return False

    def leave(self) -> None:
        """Give the place to the thread that has waited longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1
