"""How much of the processor's time went to others while something ran here."""

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")


@dataclass(frozen=True, slots=True)
class ProcessorTime:
    """Seconds: of a clock, of all cores at work, and of this process and its ended children."""

    clock: float
    busy: float
    own: float


def processor_time() -> ProcessorTime | None:
    """Both counts so far; None where the system does not say."""
    if not STAT.is_file():
        return None
    own = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        own += usage.ru_utime + usage.ru_stime
    return ProcessorTime(time.monotonic(), busy_seconds(STAT.read_text(encoding="utf-8")), own)


def busy_seconds(stat: str, ticks: int | None = None) -> float:
    """Seconds that all cores have been at work, from /proc/stat: its first line without the idle.

    That line is: user, nice, system, idle, waiting for disks, interrupts, soft interrupts, stolen
    by other guests of the same machine, and then two that user and nice hold already.
    """
    numbers = [int(word) for word in stat.splitlines()[0].split()[1:9]]
    idle = numbers[3] + numbers[4]
    return (sum(numbers) - idle) / (ticks or os.sysconf("SC_CLK_TCK"))


def share_of_others(before: ProcessorTime, after: ProcessorTime, cores: int) -> float:
    """The part of all cores' time that neither was idle nor went to us, from 0 to 1."""
    others = (after.busy - before.busy) - (after.own - before.own)
    return max(0.0, others / (cores * (after.clock - before.clock)))
