"""Fuzzes one reader, guided by coverage.

  pip install 'syscall-lm[fuzz]'
  python tests/fuzz/fuzz_readers.py READER [-max_total_time=120] [other options of libFuzzer]

READER is a format's name, or `sources` for archives and packing. The seeds are tests/fuzz/seeds.py; what is found goes
to tests/fuzz/regressions/READER-NAME, and tests/fuzz/test_regressions.py reads it ever after. A finding is an exception
other than SyscallLMError, a promise broken (counts that do not fit the traces, text that is no UTF-8), a hang or more
memory than libFuzzer allows.
"""

import collections
import contextlib
import importlib
import io
import pathlib
import sys
import tempfile
from typing import Any

FOLDER = pathlib.Path(__file__).parent
MAX_SIZE = 4096  # bytes of an input: enough for several lines


def check(name: str, data: bytes) -> None:
    """Reads bytes as a format and checks what every reader promises."""
    from syscall_lm.errors import SyscallLMError
    from syscall_lm.traces import readers, sources
    from syscall_lm.traces.readers import Counters, Options
    from syscall_lm.traces.sources import Source
    from syscall_lm.traces.unpacking import ByteStream

    if name == "sources":
        with tempfile.NamedTemporaryFile() as file, contextlib.suppress(SyscallLMError):
            file.write(data)
            file.flush()
            skipped = collections.Counter[str]()
            for source in sources.open_sources([file.name], skipped, sources.Limits(free_bytes=2**20)):
                while source.stream.read(2**16):
                    pass
        return
    module = readers.reader(name)
    # The first byte chooses options, so that all of them are tried.
    choice, data = (data[0], data[1:]) if data else (0, data)
    groupings = getattr(module, "GROUPINGS", ("",))
    options = Options(
        group=groupings[choice % len(groupings)],
        max_gap=10.0 if choice & 4 else 0.0,
        numbering="abi" if choice & 8 and name in ("csv", "jsonl", "text_lines", "awsctd") else "",
        mapping=str(FOLDER / "mapping.txt") if name == "unm" else "",
    )
    counters = Counters()
    with contextlib.suppress(SyscallLMError):
        module.recognises("x", data)
        vocabulary = module.vocabulary(options)
        traces = list(module.read(Source("x", ByteStream(io.BytesIO(data).read)), vocabulary, options, counters))
        if counters.traces != len(traces) or counters.calls != sum(len(trace.calls) for trace in traces):
            raise AssertionError("the counts do not fit the traces")
        unknown = sum(int((trace.calls == vocabulary.unk).sum()) for trace in traces)
        if unknown != counters.unknown.total():
            raise AssertionError("unknown calls are miscounted")
        for trace in traces:
            for text in (trace.id, trace.source, trace.command, trace.host):
                text.encode()  # an archive holds UTF-8


def main() -> None:
    """Fuzzes until libFuzzer's options say to stop."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["syscall_lm"]):
        from syscall_lm.traces import grouping, readers, sources

        formats = readers.names()
        modules = [readers.reader(name) for name in formats]
        del grouping, sources, modules
    sys.path.insert(0, str(FOLDER))
    import seeds

    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in [*formats, "sources"]:
        sys.exit(f"usage: fuzz_readers.py READER [options]; READER is sources or one of {', '.join(formats)}")
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds.SEEDS.get(name, [b""])):
            (pathlib.Path(corpus) / str(number)).write_bytes(seed if name == "sources" else b"\0" + seed)
        findings = FOLDER / "regressions" / f"{name}-"
        options = [f"-artifact_prefix={findings}", f"-max_len={MAX_SIZE}", "-timeout=10", "-rss_limit_mb=4096"]
        atheris.Setup([sys.argv[0], *options, *sys.argv[2:], corpus], lambda data: check(name, data))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
