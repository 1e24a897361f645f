"""How every experiment starts: flags, help, and errors that are one sentence."""

import inspect
import os
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from absl import flags

from syscall_lm import cpu
from syscall_lm.errors import Interrupted, SyscallLMError

EXIT_USER_ERROR = 2
_REQUIRED = "must have a value other than None"  # how absl says that a required flag is missing
_NO_NUMBER = {"could not convert string to float": "a number", "invalid literal for int": "a whole number"}


def run(main: Callable[..., None]) -> None:
    """Parses the flags, calls `main(arguments)`, or `main()` if it takes none, and leaves the process.

    `arguments` are what the command line holds besides flags. A user's mistake (`SyscallLMError`, an unknown flag or a
    bad value) prints one sentence and exits with code 2; a run that was ended from outside and can go on
    (`Interrupted`) exits with 75, Ctrl-C with 130.
    """
    cpu.one_device_a_core()
    if logging := sys.modules.get("absl.logging"):  # imported with Orbax, which says much and tells its errors twice
        logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = _unraisable
    code = exit_code(main, sys.argv)
    if code == EXIT_USER_ERROR and "orbax" in sys.modules:  # its threads, after an error, complain of the process's end
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def exit_code(main: Callable[..., None], argv: list[str]) -> int:
    """Runs `main` and says what went wrong; the process's exit code."""
    try:
        if any(argument in ("--help", "-h", "-help") for argument in argv[1:]):
            print(_help(sys.modules[main.__module__]))
        else:
            arguments = flags.FLAGS(argv)[1:]
            takes_arguments = bool(inspect.signature(main).parameters)
            if any(flag.name == "output" and flag.value == "" for flag in own_flags(sys.modules[main.__module__])):
                raise SyscallLMError("--output names no file")
            if arguments and not takes_arguments:
                raise SyscallLMError(f"{argv[0].split()[-1]} takes flags only; what is {arguments[0]!r}?")
            main(*([arguments] if takes_arguments else []))
        sys.stdout.flush()
    except flags.Error as error:
        text = str(error).replace("\n", " ")
        for words, told in _NO_NUMBER.items():
            text = re.sub(f": {words}.*", f": {told} is needed", text)
        missing = re.findall(rf"Flag (--\w+) {_REQUIRED}", text)
        return _complain(f"{', '.join(missing)}: missing; `--help` explains the flags" if missing else text)
    except SyscallLMError as error:
        return _complain(str(error))
    except Interrupted as interruption:
        _complain(str(interruption), "interrupted")
        return interruption.exit_code
    except MemoryError as error:  # NumPy says how much it asked for
        return _complain(f"the memory does not suffice; {error or 'nothing was written'}")
    except UnicodeEncodeError as error:  # of a flag or a path with bytes that neither Parquet nor a terminal takes
        return _complain(f"{str(error.object)[:200]!r}: is no UTF-8, which is needed here")
    except BrokenPipeError:  # the reader of our output (`| head`) left early
        _silence()
        return 1
    except OSError as error:
        _silence()
        return _complain(f"{error.filename or 'the output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _unraisable(what: Any) -> None:
    """Prints what no caller can catch, but not what threads of TensorStore, Orbax's storage, say after an error."""
    if str(what.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(what)


def _silence() -> None:
    """What is still to be printed cannot be, and Python would say so at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str, kind: str = "error") -> int:
    print(f"{kind}: {printable(message)}", file=sys.stderr)
    return EXIT_USER_ERROR


def printable(text: str) -> str:
    """A line for the terminal: names come from captures, and it must not obey their control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_notice(notice: str) -> None:
    """An archive's notice, which must stand wherever figures from it do."""
    if notice:
        print(printable(notice))


def own_flags(module: ModuleType) -> list[flags.Flag]:
    """The flags that an experiment defines, in the order of its file."""
    holders = (value for value in vars(module).values() if isinstance(value, flags.FlagHolder))
    return [flags.FLAGS[holder.name] for holder in holders]


def _required(flag: flags.Flag) -> bool:
    return any(_REQUIRED in validator.message for validator in flag.validators)


def _help(module: ModuleType) -> str:
    lines = [(module.__doc__ or "").strip(), "", "flags:"]
    for flag in own_flags(module):
        default = f" (default: {flag.default_as_str})" if flag.default else " (required)" * _required(flag)
        lines.append(f"  --{flag.name}: {flag.help}{default}")
    more: Callable[[], list[str]] = getattr(module, "more_help", list)  # what would take long to say at every start
    return "\n".join(lines + more())
