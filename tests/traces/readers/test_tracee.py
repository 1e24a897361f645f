import collections

from syscall_lm.traces.lost_events import LOST
from syscall_lm.traces.readers import Options, tracee

DOCUMENTED = (
    b'{"timestamp":1657290245020855990,"threadStartTime":1657290245020,"processorId":5,"processId":1664936,'
    b'"cgroupId":5247,"threadId":1664936,"parentProcessId":1664935,"hostProcessId":1664937,"hostThreadId":1664938,'
    b'"hostParentProcessId":1664935,"userId":1000,"mountNamespace":4026531840,"pidNamespace":4026531836,'
    b'"processName":"exa","hostName":"ubuntu","containerId":"","eventId":"257","eventName":"openat","argsNum":4,'
    b'"returnValue":3,"syscall":"openat","stackAddresses":null,"args":[{"name":"dirfd","type":"int","value":-100}]}\n'
)


def test_the_documented_event_is_one_call_of_the_host_s_thread(read):
    traces, _, names = read("tracee", DOCUMENTED)
    assert names == [["openat"]]
    assert (traces[0].pid, traces[0].command, traces[0].host) == (1664938, "exa", "ubuntu")
    assert abs(traces[0].start_time - 1657290245.0208559) < 1e-3
    assert read("tracee", DOCUMENTED, Options(group="process"))[0][0].pid == 1664937


def test_derived_events_are_no_calls_and_an_exit_ends_a_trace(read):
    derived = DOCUMENTED.replace(b'"openat","argsNum"', b'"security_file_open","argsNum"')
    ended = DOCUMENTED.replace(b'"openat","argsNum"', b'"sched_process_exit","argsNum"')
    _, counters, names = read("tracee", DOCUMENTED + derived + DOCUMENTED + ended + DOCUMENTED)
    assert names == [["openat", "openat"], ["openat"]]
    assert counters.skipped == {tracee.NOT_A_CALL: 2}


def test_lost_events_are_counted(read):
    _, counters, _ = read("tracee", b'{"level":"warn","ts":1,"msg":"Lost 12 events"}\n' + DOCUMENTED)
    assert counters.skipped == {LOST: 12}


def test_the_samples_of_beth(read, shared_data):
    found = collections.Counter()
    labels = collections.Counter()
    for path in sorted((shared_data / "format_samples/beth").glob("*.csv")):
        traces, counters, _ = read("tracee", path.read_bytes(), file=path.name)
        rows = path.read_text().count("\n") - 1
        assert counters.calls + counters.skipped[tracee.NOT_A_CALL] == rows == 100
        assert set(counters.skipped) <= {tracee.NOT_A_CALL} and not counters.unknown
        found[traces[0].split] += counters.calls
        labels.update(trace.label for trace in traces)
        assert all(trace.host for trace in traces)
    assert found == {"": 165, "train": 76, "validation": 75, "test": 75}
    assert labels == {"normal": 47, "attack": 1}
