"""What recorders write when they could not keep up."""

import re

from syscall_lm.traces.readers import Counters

LOST = "lost events"

# perf trace, perf script, ftrace and trace-cmd, bpftrace, Tracee, auditd; each with how many were lost.
_LOST = re.compile(
    rb"(?:\[LOST (\d{1,15}) EVENTS\]"
    rb"|\bLOST (\d{1,15}) events!"
    rb"|\b[Ll]ost (\d{1,15}) events"
    rb"|PERF_RECORD_LOST(?:_SAMPLES)?\b.{0,20}?\blost (\d{1,15})"
    rb"|\baudit_lost=(\d{1,15}))"
)


def count(line: bytes, counters: Counters) -> bool:
    """Counts the events that a message says were lost; says whether it is such a message."""
    found = _LOST.search(line[:512])
    if found is None:
        return False
    counters.skipped[LOST] += int(found[found.lastindex or 1])
    return True
