"""The ids of texts seen lately: the same passages come back query after query."""

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]

# what a dictionary's entry and its place in the order take besides
ENTRY_BYTES = 150


class TokenCache:
    """Least recently used texts go first once texts and ids take more than `max_bytes`."""

    def __init__(self, max_bytes: int = 64 * 2**20) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._ids: OrderedDict[str, Ids] = OrderedDict()
        self._lock = threading.Lock()

    def get_or_encode(
        self, texts: Sequence[str], encode: Callable[[list[str]], list[Ids]]
    ) -> list[Ids]:
        """The ids of each text; `encode` is asked for those not known, all at once."""
        with self._lock:
            known = {text: self._ids[text] for text in texts if text in self._ids}
            for text in known:
                self._ids.move_to_end(text)
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing:
            found = dict(zip(missing, encode(missing), strict=True))
            self._remember(found)
            known |= found
        return [known[text] for text in texts]

    def _remember(self, found: dict[str, Ids]) -> None:
        with self._lock:
            for text, ids in found.items():
                if text not in self._ids:
                    ids.flags.writeable = False
                    self._ids[text] = ids
                    self._bytes += _size(text, ids)
            while self._bytes > self._max_bytes:
                text, ids = self._ids.popitem(last=False)
                self._bytes -= _size(text, ids)


def _size(text: str, ids: Ids) -> int:
    return sys.getsizeof(text) + sys.getsizeof(ids) + ENTRY_BYTES
