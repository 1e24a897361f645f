import tracemalloc

import pytest

from syscall_lm.traces import grouping
from syscall_lm.traces.call_ids import CallIds
from syscall_lm.traces.filters import DOUBLED_EVENT, LATE_EVENT
from syscall_lm.traces.grouping import Grouping, Naming
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source
from syscall_lm.traces.unpacking import ByteStream
from syscall_lm.traces.vocabulary import Vocabulary

IDS = {"read": 0, "exit": 1, "exit_group": 2, "clone": 3}
SOURCE = Source("x", ByteStream(lambda size: b""))


def make(by="thread", **options):
    counters = Counters()
    return Grouping(SOURCE, Options(**options), counters, by, dict(IDS)), counters


def told(traces):
    return {trace.id: trace.calls.tolist() for trace in traces}


def test_the_end_of_a_process_ends_all_its_threads():
    group, _ = make()
    for tid in (7, 8, 9):
        group.call(0, 7, tid)
    group.call(0, 99, 99)
    group.call(2, 7, 8)  # exit_group
    group.call(0, 7, 7)  # a new process with an old number
    assert told(group.settle()) == {"x:7": [0], "x:8": [0, 2], "x:9": [0]}
    assert told(group.finish()) == {"x:99": [0], "x:7#2": [0]}


def test_a_thread_s_end_is_not_its_process_s():
    group, _ = make("process")
    group.call(0, 7, 7)
    group.call(1, 7, 8)  # exit, of one thread
    group.exit(7, 8)
    group.call(0, 7, 7)
    assert not told(group.settle())
    group.exit(7, 7)
    assert told(group.settle()) == {"x:7": [0, 1, 0]}


def test_hosts_and_sessions_keep_their_processes_apart():
    group, _ = make()
    for host, session in (("a", ""), ("b", ""), ("a", ""), ("", "s"), ("a", "s"), ("", "s")):
        group.call(0, 7, 7, host=host, session=session)
    assert {key: len(calls) for key, calls in told(group.finish()).items()} == {
        "x:a/7": 2,
        "x:b/7": 1,
        "x:s": 2,
        "x:a/s": 1,
    }


def test_a_silence_ends_a_trace_if_asked_to():
    for max_gap, expected in ((0, {"x:7": [0] * 5}), (10, {"x:7": [0, 0], "x:7#2": [0, 0, 0]})):
        group, _ = make(max_gap=max_gap)
        for time in (1, 11, 22, 3, None):  # a jump back is no silence
            group.call(0, 7, 7, time=time)
        assert told(group.finish()) == expected


def test_names_that_appear_late_end_processes_too():
    ids = {}
    group = Grouping(SOURCE, Options(), Counters(), "thread", ids)
    group.call(0, 7, 7)
    ids["exit_group"] = 1
    group.call(1, 7, 7)
    group.call(0, 7, 7)
    assert told(group.finish()) == {"x:7": [0, 1], "x:7#2": [0]}


def test_ends_belong_to_their_thread_in_whatever_way_calls_are_put_together():
    for by in ("thread", "process"):
        group, counters = make(by)
        ids = CallIds(Vocabulary(tuple(IDS)), counters)
        group.enter("read", ids, 7, 7)
        group.enter("read", ids, 7, 8)
        group.leave("read", ids, 7, 7, False)
        group.leave("read", ids, 7, 8, False)
        group.leave("clone", ids, 7, 9, True)
        assert sum(len(calls) for calls in told(group.finish()).values()) == 2
        assert counters.skipped == {grouping.END_OF_CALL: 2, grouping.CHILD: 1}


def test_an_unknown_call_is_counted_once_though_it_has_two_ends():
    group, counters = make()
    ids = CallIds(Vocabulary(tuple(IDS)), counters)
    group.enter("new", ids, 7, 7)
    group.leave("new", ids, 7, 7, False)
    group.leave("newer", ids, 7, 7, False)  # its beginning was not recorded
    assert counters.unknown == {"new": 1, "newer": 1} and told(group.finish()) == {"x:7": [4, 4]}


def test_the_longest_silent_go_first_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(grouping, "MAX_LIVE", 10)
    group, counters = make()
    found = []
    for pid in range(30):
        group.call(0, pid, pid)
        group.call(0, 1000, 1000)  # always at work
        found += group.settle()
    assert counters.skipped[grouping.CROWD] == len(found) and 1000 not in {trace.pid for trace in found}
    found += group.finish()
    assert {trace.pid: len(trace.calls) for trace in found} == {1000: 30, **dict.fromkeys(range(30), 1)}


def test_calls_that_are_held_are_bounded(monkeypatch):
    monkeypatch.setattr(grouping, "MAX_HELD", 1000)
    group, counters = make()
    found = []
    for _ in range(100):
        for _ in range(50):
            group.call(0, 7, 7)
        found += group.settle(50)
        assert sum(len(trace.calls) for trace in group._open.values()) <= 1050
    found += group.finish()
    assert sum(len(trace.calls) for trace in found) == 5000 and counters.skipped[grouping.LONG] == len(found) - 1


BOTH = {"order_events": True, "drop_doubled_events": True}


def test_calls_get_the_order_of_their_times_and_doubles_go():
    second = 1_700_000_000
    recorded = [(3, 0), (1, 3), (2, 0), (1, 3), (2.5, 0), (2.5, 0)]  # time, call
    for chosen, expected, first in (
        ({}, [0, 3, 0, 3, 0, 0], 3),
        ({"order_events": True}, [3, 3, 0, 0, 0, 0], 1),
        ({"drop_doubled_events": True}, [0, 3, 0, 3, 0], 3),
        (BOTH, [3, 0, 0, 0], 1),
    ):
        group, counters = make(**chosen)
        for time, call in recorded:
            group.call(call, 7, 7, time=second + time)
        (trace,) = group.finish()
        assert trace.calls.tolist() == expected and trace.start_time == second + first
        assert counters.calls == len(expected)
        late, doubled = (counters.filtered[reason] for reason in (LATE_EVENT, DOUBLED_EVENT))
        assert late == (5 if "order_events" in chosen else 0) and doubled == 6 - len(expected)


def test_thread_ids_of_any_size_are_told_apart():
    group, _ = make("process", **BOTH)
    for tid in (2**32 + 1, 2**70 + 2, -3):
        group.call(1, 7, tid, time=5.0)
    assert [trace.calls.tolist() for trace in group.finish()] == [[1, 1, 1]]


def test_two_threads_of_a_process_may_call_the_same_at_once():
    group, counters = make("process", **BOTH)
    for tid in (7, 8, 8):
        group.call(0, 7, tid, time=1.0)
    assert told(group.finish()) == {"x:7": [0, 0]} and counters.filtered[DOUBLED_EVENT] == 1


@pytest.mark.parametrize("by", ["thread", "process"])
def test_calls_recorded_after_their_process_s_end_belong_to_it_if_they_happened_before(by):
    group, _ = make(by, **BOTH)
    group.call(0, 7, 7, time=1.0)
    for time, call in ((5.0, 2), (4.0, 0), (5.0, 2), (6.0, 3)):  # exit_group is 2
        group.call(call, 7, 7, time=time)
    assert told(group.settle()) == {"x:7": [0, 0, 2]}  # another process has its number now
    group.exit(7, 7, time=8.0)
    group.call(0, 7, 7, time=7.0)
    assert told(group.finish()) == {"x:7#2": [3, 0]}


def test_the_end_of_a_process_ends_its_threads_where_calls_are_ordered_too():
    group, _ = make(order_events=True)
    for time, tid, call in ((1, 8, 0), (5, 7, 2), (4, 8, 3), (6, 8, 0)):
        group.call(call, 7, tid, time=float(time))
    assert told([*group.settle(), *group.finish()]) == {"x:8": [0, 3], "x:7": [2], "x:8#2": [0]}


def test_a_late_call_is_no_silence():
    group, _ = make(max_gap=10, **BOTH)
    for time in (1.0, 9.0, 2.0, 15.0, 26.0):
        group.call(0, 7, 7, time=time)
    assert told(group.finish()) == {"x:7": [0] * 4, "x:7#2": [0]}


def test_a_call_without_the_time_that_a_filter_needs_is_skipped():
    group, counters = make(order_events=True)
    for time in (2.0, None, 1.0):
        group.call(0, 7, 7, time=time)
    assert told(group.finish()) == {"x:7": [0, 0]} and counters.skipped == {grouping.NO_TIME: 1}


def test_calls_that_are_held_with_their_times_are_bounded(monkeypatch):
    monkeypatch.setattr(grouping, "MAX_HELD", 100 * grouping.TIMED)
    group, counters = make("process", **BOTH)
    found = []
    for pid in range(100):
        for time in range(10):
            group.call(0, pid % 30, time=float(100 * pid + time))
        group.call(2, pid % 30, time=100.0 * pid + 10)
        found += group.settle(11)
        assert sum(len(trace.calls) for trace in group._open.values()) <= 120
    found += group.finish()
    assert [len(trace.calls) for trace in found] == [11] * 100
    assert not counters.skipped  # all that had to go had ended
    for pid in range(20):
        for time in range(10):
            group.call(0, pid, time=float(time))
        list(group.settle(10))
    assert counters.skipped[grouping.LONG]


def test_ids_stay_distinct_when_there_are_too_many_to_remember(monkeypatch):
    monkeypatch.setattr(grouping, "MAX_KEYS", 3)
    naming = Naming("x")
    ids = [naming(str(key)) for key in (1, 2, 3, 4, 4, 1, 5)]
    assert ids == ["x:1", "x:2", "x:3", "x:4@4", "x:4@5", "x:1#2", "x:5@7"]


@pytest.mark.slow
def test_memory_stays_flat_over_many_processes():
    group, counters = make("process")
    tracemalloc.start()
    traces = 0
    for start in range(0, 200_000, 10_000):
        for pid in range(start, start + 10_000):
            group.call(0, pid)
        traces += sum(1 for _ in group.settle(10_000))
    traces += sum(1 for _ in group.finish())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert traces == 200_000 and peak < 150e6
