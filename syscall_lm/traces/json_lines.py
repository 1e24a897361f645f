"""One JSON object a line, from whoever wrote it: nothing in it has the type that one expects."""

import datetime
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from syscall_lm.traces import recognition
from syscall_lm.traces.readers import Counters
from syscall_lm.traces.sources import Source, line_blocks

BLANK, NOT_JSON = "empty line", "not a JSON object"

Record = dict[str, Any]

_MAX_PID = 2**32
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(\.\d{1,12})?(?:Z|\+00:00)?", re.ASCII)


def blocks(source: Source, counters: Counters) -> Iterator[list[Record]]:
    """The objects of a file, some at a time; other lines are counted as skipped."""
    for block in line_blocks(source.stream, counters):
        records = []
        for line in block:
            record = parse(line)
            if record is not None:
                records.append(record)
            else:
                counters.skipped[NOT_JSON if line.strip() else BLANK] += 1
        yield records


def parse(line: bytes) -> Record | None:
    """The object in a line; nothing if it holds none."""
    if not line.lstrip().startswith(b"{"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def recognise(head: bytes, is_own: Callable[[Record], object]) -> bool:
    """Whether the first lines are objects of a format; see `recognition.mostly`."""

    def check(line: bytes) -> bool:
        record = parse(line)
        return record is not None and bool(is_own(record))

    return recognition.mostly(head, check)


def integer(value: object) -> int | None:
    """A process id or call number: an int, or a string of digits."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_PID:
        return None
    return value


def text(value: object) -> str:
    """A name; empty if it is none, shortened if it is long."""
    # Lone surrogates are legal in JSON but in no archive.
    return value[:256].encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def child(record: Record, key: str) -> Record:
    """The object under a key; an empty one if there is none."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def seconds(value: object) -> float | None:
    """A time in seconds since the epoch: from ISO 8601 in UTC, seconds, or nanoseconds."""
    if isinstance(value, str):
        found = _TIME.fullmatch(value)
        if found is None:
            return _number(value)
        try:
            whole = datetime.datetime.fromisoformat(found[1]).replace(tzinfo=datetime.UTC).timestamp()
        except ValueError:
            return None
        return whole + float(found[2] or 0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return _scaled(value)


def _number(value: str) -> float | None:
    try:
        return _scaled(float(value)) if len(value) < 32 else None
    except ValueError:
        return None


def _scaled(value: float) -> float | None:
    if not 0 <= value < 1e19:
        return None
    return value / 1e9 if value > 1e14 else float(value)
