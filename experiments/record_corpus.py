"""Records the embedded corpus: ordinary programs, and harmless re-enactments of intrusions, under strace.

  python -m experiments.record_corpus --output=syscall_lm/corpus/corpus.parquet --readme=syscall_lm/corpus/README.md

Every run happens in a fresh temporary folder with a clean environment and varied inputs. The intrusions work only on
files made for them in that folder and on 127.0.0.1. A trace is one process or thread. Normal runs are split 60/20/20
into train, validation and test, program by program and whole runs at a time; all intrusions are in the test split.

With the default flags it takes about half a minute on two cores. It needs strace, and the permission to trace one's
own processes; programs that are not installed are left out and named.
"""

import dataclasses
import itertools
import os
import pathlib
import platform
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping

import tqdm
from absl import flags

from syscall_lm import corpus, files
from syscall_lm.errors import SyscallLMError
from syscall_lm.experiments import command
from syscall_lm.experiments.corpus import recording
from syscall_lm.experiments.corpus.intrusions import CARRIERS, INTRUSIONS, Intrusion, attack_command, attack_processes
from syscall_lm.experiments.corpus.programs import PROGRAMS
from syscall_lm.experiments.corpus.recording import Run
from syscall_lm.experiments.corpus.workspace import SEARCH_PATH, installed
from syscall_lm.traces.archive import TraceArchiveWriter
from syscall_lm.traces.readers import Counters
from syscall_lm.traces.trace import ATTACK, NORMAL, Trace
from syscall_lm.traces.vocabulary import Vocabulary

OUTPUT = flags.DEFINE_string("output", "corpus.parquet", "The trace archive to write.")
README = flags.DEFINE_string("readme", "", "Also write a description of the recording (Markdown) to this file.")
SEED = flags.DEFINE_integer("seed", 0, "Fixes every choice: arguments, inputs, order, splits. Timing stays real.")
RUNS = flags.DEFINE_integer(
    "runs_per_program", 7, "Runs of each program, and of each kind of intrusion.", lower_bound=1
)
WORK_DIR = flags.DEFINE_string("work_dir", "", "Where the temporary folders are made; empty for the system's place.")

ABI = "x86_64"
DEAL = ("train", "validation", "train", "test", "train")  # 60/20/20, one run after the other


@dataclasses.dataclass(frozen=True)
class Task:
    """A run, and what its traces are called.

    Attributes:
      run: what to record.
      label, family, split: of its traces.
      commands: the processes that become traces; None for all.
    """

    run: Run
    label: str
    family: str
    split: str
    commands: frozenset[str] | None = None


def main() -> None:
    """Records, and says what was recorded."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite end removes the temporary folders too
    if WORK_DIR.value and not pathlib.Path(WORK_DIR.value).is_dir():
        raise SyscallLMError(f"--work_dir={WORK_DIR.value}: no such folder")
    strace = recording.check_strace()
    programs, missing = installed_programs()
    intrusions, missing_carriers = installed_intrusions()
    for name in missing + missing_carriers:
        print(f"left out, not installed: {name}", file=sys.stderr)
    tasks = [*normal_tasks(programs, RUNS.value, SEED.value), *attack_tasks(intrusions, RUNS.value)]
    traces, counters, seconds = record_tasks(tasks, SEED.value, WORK_DIR.value or None)
    write_archive(OUTPUT.value, traces, counters)
    if README.value:
        files.write_text(README.value, describe(traces, strace, seconds, SEED.value, RUNS.value))
    size = pathlib.Path(OUTPUT.value).stat().st_size
    calls = sum(len(trace.calls) for trace in traces)
    print(f"{OUTPUT.value}: {len(traces)} traces, {calls} calls, {size / 1e6:.2f} MB, recorded in {seconds:.0f} s")


def normal_tasks(programs: Iterable[str], runs: int, seed: int) -> list[Task]:
    """The runs of ordinary programs, dealt to the splits so that each program comes to all (from five runs up)."""
    tasks = []
    dealt = itertools.cycle(DEAL)
    for program in programs:
        splits = list(itertools.islice(dealt, runs))
        random.Random(f"{seed}/{program}/splits").shuffle(splits)
        for number, split in enumerate(splits):
            run = Run(f"{program}-{number:02}", PROGRAMS[program].build)
            tasks.append(Task(run, NORMAL, program, split))
    return tasks


def attack_tasks(intrusions: Mapping[str, Intrusion], runs: int) -> list[Task]:
    """The runs of each kind of intrusion; its carriers take turns."""
    tasks = []
    for kind, intrusion in intrusions.items():
        for number in range(runs):
            carrier = sorted(intrusion.scripts)[number % len(intrusion.scripts)]

            def build(workspace, intrusion=intrusion, carrier=carrier):
                return attack_command(workspace, intrusion, carrier)

            commands = attack_processes(intrusion, carrier)
            tasks.append(Task(Run(f"{kind}-{carrier}-{number:02}", build), ATTACK, kind, "test", commands))
    return tasks


def record_tasks(tasks: list[Task], seed: int, work_dir: str | None = None) -> tuple[list[Trace], Counters, float]:
    """Records every task, one after the other.

    Returns:
      The traces in the order of the tasks, what the reader counted, and the seconds it took.

    Raises:
      SyscallLMError: a run fails.
    """
    vocabulary, counters, traces = Vocabulary.from_abi(ABI), Counters(), []
    start = time.monotonic()
    progress = tqdm.tqdm(tasks, unit="run", disable=None)
    for task in progress:
        progress.set_description(task.run.name)
        try:
            recorded = recording.record(task.run, seed, work_dir, vocabulary, counters)
        except OSError as error:
            raise SyscallLMError(f"{task.run.name}: cannot be recorded ({error.strerror or error})") from error
        for trace in recorded:
            if task.commands is None or trace.command in task.commands:
                traces.append(dataclasses.replace(trace, label=task.label, family=task.family, split=task.split))
    return traces, counters, time.monotonic() - start


def write_archive(path: str, traces: list[Trace], counters: Counters) -> None:
    """Writes the archive, completely or not at all."""
    with TraceArchiveWriter(path, Vocabulary.from_abi(ABI)) as writer:
        writer.metadata |= {"notice": corpus.NOTICE, "counters": counters.to_json()}
        for trace in traces:
            writer.write(trace)


def describe(traces: list[Trace], strace: str, seconds: float, seed: int, runs: int) -> str:
    """The description that lies beside the archive."""
    normal = [trace for trace in traces if trace.label == NORMAL]
    attacks = [trace for trace in traces if trace.label == ATTACK]
    by_split = sorted(traces, key=lambda trace: ("train", "validation", "test").index(trace.split))
    distribution = platform.freedesktop_os_release().get("PRETTY_NAME", "unknown distribution")
    kernel = platform.release().partition("-")[0]
    return _README.format(
        strace=strace.replace(" -- version", ""),
        kernel=kernel,
        distribution=distribution,
        date=time.strftime("%Y-%m-%d"),
        seconds=seconds,
        seed=seed,
        runs=runs,
        path=SEARCH_PATH,
        user="root" if os.geteuid() == 0 else "an ordinary user",
        distinct=len({trace.calls.tobytes() for trace in normal}) / max(1, len(normal)),
        splits=_table("split, label", by_split, lambda trace: f"{trace.split}, {trace.label}"),
        programs=_table("program", normal, lambda trace: trace.family),
        kinds=_table("kind", attacks, lambda trace: trace.family),
    )


def _table(head, traces, key) -> str:
    runs, processes, calls = {}, Counter(), Counter()
    for trace in traces:
        runs.setdefault(key(trace), set()).add(trace.source)
        processes[key(trace)] += 1
        calls[key(trace)] += len(trace.calls)
    rows = [f"| {name} | {len(runs[name])} | {processes[name]} | {calls[name]:,} |" for name in runs]
    return "\n".join([f"| {head} | runs | traces | calls |", "|---|---:|---:|---:|", *rows])


def installed_programs() -> tuple[list[str], list[str]]:
    """The programs that can be recorded here, and those that are left out."""
    missing = [name for name, program in PROGRAMS.items() if not all(map(installed, program.needs))]
    return [name for name in PROGRAMS if name not in missing], missing


def installed_intrusions() -> tuple[dict[str, Intrusion], list[str]]:
    """The intrusions with the carriers that are installed here, and what is left out, for people."""
    missing = {name for name, carrier in CARRIERS.items() if not installed(carrier.needs)}
    found = {}
    for kind, intrusion in INTRUSIONS.items():
        scripts = {carrier: text for carrier, text in intrusion.scripts.items() if carrier not in missing}
        if scripts:
            found[kind] = dataclasses.replace(intrusion, scripts=scripts)
    return found, [f"intrusions carried by {name}" for name in sorted(missing)]


_README = """# The embedded corpus

Real system-call traces, recorded by this project with `experiments/record_corpus.py`, so that every command can be
tried without a download. **It is a demonstration, not a benchmark**: the programs are few, the inputs are made up, each
intrusion is a re-enactment of a few lines, and detection figures on it say nothing about a detector in the field.

- Recorded on {date} on Linux {kernel} (x86_64), {distribution}, with {strace}, in {seconds:.0f} seconds.
- The seed fixes arguments, inputs and splits; scheduling is real, so a second recording differs a little. The command:

  ```
  python -m experiments.record_corpus --seed={seed} --runs_per_program={runs} \\
    --output=syscall_lm/corpus/corpus.parquet --readme=syscall_lm/corpus/README.md
  ```
- A trace is one process or thread of a run, from its first call to its last, never cut. Each run happens in a fresh
  temporary folder with a clean environment (PATH={path}), as {user}, without a terminal.
- `source` is the run, `id` the run and the process's number in order of appearance, `family` the program or the
  kind of intrusion. {distinct:.0%} of the normal traces are distinct sequences.
- Normal runs are dealt to train, validation and test (60/20/20) program by program; a run is never divided. All
  intrusions are in the test split.

{splits}

## Normal programs

{programs}

## Intrusions

Harmless by construction: they touch only files that were made for them in the run's temporary folder, connect only to
127.0.0.1, and are bounded in time and number. The other side of a connection (the intruder's listener) is not
recorded. **A process is labelled attack if it runs the intrusion's own code** (its script, its compiled program, or a
fork of it), **if it is the shell that is handed to the intruder, or if it is a tool that does the intrusion's work**
(grep, find and cat of a credential sweep, openssl of an encryption, tar, gzip and cat of a theft, setsid of a
persistent process). Other helpers of an attack run (id, ls, mkdir, ...) look the same in a normal run; they are left
out. A forked copy that ends at once makes a trace of a few calls, labelled attack by the same rule.

{kinds}
"""

if __name__ == "__main__":
    command.run(main)
