"""Running something in a forked child, with a watchdog in case it hangs."""

import os
import signal
import traceback
import warnings
from collections.abc import Callable

WATCHDOG_SECONDS = 60


def in_child(call: Callable[[], str]) -> str:
    """What `call` returns in a fork of this process; fails if the child dies or hangs."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of forks with threads
        child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(WATCHDOG_SECONDS)
        try:
            answer = call()
        except BaseException:  # noqa: BLE001 - the parent is told, whatever it is
            answer = traceback.format_exc()
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with {status} and said: {answer}"
    return answer
