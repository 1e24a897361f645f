"""What the tests of readers share."""

import io

import pytest

from syscall_lm.traces import readers
from syscall_lm.traces.readers import Counters, Options
from syscall_lm.traces.sources import Source
from syscall_lm.traces.unpacking import ByteStream


@pytest.fixture(scope="session")
def read():
    """Reads bytes as a format: the traces, the counters, and the names of each trace's calls.

    What holds for every reader is checked on the way: the counts fit the traces, and the ids are distinct.
    """

    def read(name, data, options=None, file="capture"):
        options, counters, module = options or Options(), Counters(), readers.reader(name)
        vocabulary = module.vocabulary(options)
        stream = ByteStream(io.BytesIO(data).read)
        traces = list(module.read(Source(file, stream), vocabulary, options, counters))
        names = dict(enumerate(vocabulary.names))
        assert counters.calls == sum(len(trace.calls) for trace in traces)
        assert counters.traces == len(traces) == len({trace.id for trace in traces})
        assert all(len(trace.calls) for trace in traces)
        assert sum((trace.calls == vocabulary.unk).sum() for trace in traces) == counters.unknown.total()
        return traces, counters, [[names.get(int(call), "?") for call in trace.calls] for trace in traces]

    return read
