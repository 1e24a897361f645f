"""Captures with columns of any name: which of them holds what."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from syscall_lm.errors import SyscallLMError
from syscall_lm.traces import call_ids, json_lines
from syscall_lm.traces.call_ids import CallIds
from syscall_lm.traces.grouping import Grouping
from syscall_lm.traces.numbers import number_names
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source
from syscall_lm.traces.vocabulary import NamesSeen, Vocabulary

NO_CALL, NO_PROCESS = "row without a call", "row without a process"
ODD_LABEL = "label that says neither attack nor normal"
GROUPINGS = ("thread", "process")

# The names under which a column is found if --columns does not tell; `calls` holds a whole trace in one row.
USUAL = {
    "call": ("syscall", "call", "syscall_name"),
    "calls": ("calls", "syscalls", "sequence"),
    "trace": ("trace", "trace_id", "session", "id"),
    "pid": ("pid", "process_id"),
    "tid": ("tid", "thread_id"),
    "command": ("command", "comm", "process", "process_name"),
    "host": ("host", "hostname"),
    "time": ("time", "timestamp"),
    "label": ("label", "attack"),
}
_ATTACK = frozenset({"attack", "1", "1.0", "true", "malicious", "anomaly", "abnormal", "evil"})
_NORMAL = frozenset({"normal", "0", "0.0", "false", "benign", "clean"})


@dataclasses.dataclass(frozen=True)
class Columns:
    """The name of each column, by what it holds (a key of `USUAL`)."""

    names: dict[str, str]

    @classmethod
    def choose(cls, present: Sequence[str], options: Options, file: str) -> "Columns":
        """What --columns says, and the usual names for the rest; WHAT= without a name says that no column holds it.

        Raises:
          SyscallLMError: --columns cannot be understood or names a column that is not there; none holds calls; none
            tells which calls belong together; a filter needs each call's time, and none tells it.
        """
        chosen: dict[str, str] = {}
        for part in filter(None, options.columns.split(",")):
            what, equals, name = part.partition("=")
            if what not in USUAL or not equals:
                raise SyscallLMError(f"--columns: {part!r} is not WHAT=NAME with WHAT one of {', '.join(USUAL)}")
            if name and name not in present:
                raise SyscallLMError(f"{file}: has no column {name!r} (--columns); it has {', '.join(present)[:200]}")
            chosen[what] = name
        for what, usual in USUAL.items():
            if what not in chosen and (name := next((name for name in usual if name in present), None)):
                chosen[what] = name
        chosen = {what: name for what, name in chosen.items() if name}
        if chosen.get("trace") == "id" and "trace=id" not in options.columns.split(",") and "calls" not in chosen:
            if {"pid", "tid"} & set(chosen):  # then a row is a call, and its own number no session
                del chosen["trace"]
        shown = ", ".join(present)[:200]
        if "call" not in chosen and "calls" not in chosen:
            raise SyscallLMError(f"{file}: no column holds calls; name one by --columns=call=NAME, it has {shown}")
        if "calls" not in chosen and not {"trace", "pid", "tid"} & chosen.keys():
            raise SyscallLMError(
                f"{file}: no column tells which calls belong together; name one by --columns=pid=NAME (or tid, trace), "
                f"it has {shown}"
            )
        for flag in options.event_filters:
            if "calls" in chosen:
                raise SyscallLMError(f"{file}: --{flag} needs each call's time, but a row of it holds a whole trace")
            if "time" not in chosen:
                raise SyscallLMError(
                    f"{file}: --{flag} needs each call's time, but no column holds one; name it by "
                    f"--columns=time=NAME, it has {shown}"
                )
        return cls(chosen)


def are_usual(names: Iterable[str]) -> bool:
    """Whether these are the names of a table of calls, without asking."""
    names = set(names)
    if names & {"calls", "syscalls"} and names & set(USUAL["trace"]):
        return True
    return bool(names & set(USUAL["call"])) and bool(names & {"trace", "trace_id", "session", *USUAL["pid"], "tid"})


def vocabulary(options: Options) -> Vocabulary | NamesSeen:
    """The mapping file's names, or the names seen (which is the ABI's table if most are from there)."""
    return Vocabulary.from_mapping_file(options.mapping) if options.mapping else NamesSeen(options.abi)


class Rows:
    """Makes traces of rows.

    Attributes:
      grouping: where the calls go.
    """

    def __init__(
        self, source: Source, vocabulary: Vocabulary | NamesSeen, options: Options, counters: Counters, columns: Columns
    ):
        self.grouping = Grouping(source, options, counters, options.group or GROUPINGS[0], vocabulary.ids)
        self._ids: CallIds[str] = CallIds(vocabulary, counters)
        self._numbers: CallIds[int] = CallIds(vocabulary, counters, number_names(options))
        self._skipped = counters.skipped
        self._names = columns.names
        self._row = 0

    def add(self, get: Callable[[str], object]) -> None:
        """Takes one row; `get` gives the value of a column, None where there is none."""
        self._row += 1
        value = {what: get(name) for what, name in self._names.items()}
        session = _word(value.get("trace"))
        pid, tid = json_lines.integer(value.get("pid")), json_lines.integer(value.get("tid"))
        calls = value.get("calls")
        if isinstance(calls, str):
            calls = calls.replace(",", " ").split()
        whole = isinstance(calls, list)
        if whole:
            session = session or ("" if pid is not None or tid is not None else str(self._row))
        elif session or pid is not None or tid is not None:
            calls = [value.get("call")]
        else:
            self._skipped[NO_PROCESS] += 1
            return
        host, command = json_lines.text(value.get("host"))[:64], json_lines.text(value.get("command"))
        label = _word(value.get("label")).lower()
        attack = True if label in _ATTACK else False if label in _NORMAL else None
        if label and attack is None:
            self._skipped[ODD_LABEL] += 1
        time = json_lines.seconds(value.get("time"))
        known = [call for call in map(self._call, calls) if call is not None]
        if len(known) < len(calls):
            self._skipped[NO_CALL] += len(calls) - len(known)
        if whole:
            self.grouping.whole(known, pid, tid, command, time, host, session, attack)
        elif known:
            self.grouping.call(known[0], pid, tid, command, time, host, session, attack)

    def _call(self, word: object) -> int | None:
        number = json_lines.integer(word)
        if number is not None:
            return self._numbers[number] if number < 2**16 else None
        if call_ids.is_name(word):
            return self._ids[str(word)]
        return None


def _word(value: object) -> str:
    if isinstance(value, bool | int):
        value = str(value) if abs(value) < 2**64 else ""
    return json_lines.text(value)
