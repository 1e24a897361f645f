"""The re-enacted intrusions of the embedded corpus: what each needs, and which of its processes are the intrusion.

They are harmless: their carriers (see `carriers`) read and write only files that were made for them in the run's
own temporary folder, talk to 127.0.0.1 only, and end by themselves.
"""

import dataclasses
import socket
import time
from collections.abc import Callable, Mapping

from syscall_lm.experiments.corpus import carriers
from syscall_lm.experiments.corpus.workspace import Workspace, drain, fetch, wait_for_port


@dataclasses.dataclass(frozen=True)
class Intrusion:
    """A kind of intrusion.

    Attributes:
      arrange: makes the victim files and the peer, and returns the arguments that every carrier takes.
      scripts: carrier (a key of `CARRIERS`) -> its source text.
      tools: the commands that do the intrusion's work for the carrier; other helpers (id, ls, mkdir) look the same
        in a normal run and say nothing about an intrusion.
    """

    arrange: Callable[[Workspace], list[str]]
    scripts: Mapping[str, str]
    tools: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Carrier:
    """A language that intrusions are written in.

    Attributes:
      command: the name of its process.
      needs: the program that must be installed.
      ending: of its source file.
    """

    command: str
    needs: str
    ending: str


CARRIERS = {
    "bash": Carrier("bash", "bash", ".bash"),
    "c": Carrier("agent", "gcc", ".c"),
    "perl": Carrier("perl", "perl", ".pl"),
    "python": Carrier("python3", "python3", ".py"),
    "sh": Carrier("sh", "sh", ".sh"),
}


def attack_command(ws: Workspace, intrusion: Intrusion, carrier: str) -> list[str]:
    """Prepares one run of an intrusion and returns the command to record."""
    arguments = intrusion.arrange(ws)
    source = ws.write("agent" + CARRIERS[carrier].ending, intrusion.scripts[carrier].lstrip())
    if carrier == "c":
        ws.prepare("gcc", "-O1", "-o", "agent", source)
        return ["./agent", *arguments]
    return [CARRIERS[carrier].command, source, *arguments]


def attack_processes(intrusion: Intrusion, carrier: str) -> frozenset[str]:
    """The commands whose processes are the intrusion: the carrier itself and the tools that work for it."""
    return intrusion.tools | {CARRIERS[carrier].command}


_RECONNAISSANCE = (
    "id",
    "uname -s",
    "pwd",
    "ls -la",
    "whoami; id -g",
    "cat victim/notes.txt",
    "find victim -type f | wc -l",
    "echo $$; umask",
    "test -w victim && echo writable",
    "for f in victim/*; do echo $f; done",
)


def _reverse_shell(ws: Workspace) -> list[str]:
    ws.files("victim", 2, 6)
    ws.write("victim/notes.txt", ws.text(5))
    commands = ws.rng.sample(_RECONNAISSANCE, ws.rng.randint(3, 7))

    def intruder(connection: socket.socket) -> None:
        for line in [*commands, "exit 0"]:
            connection.sendall(line.encode() + b"\n")
            time.sleep(0.05)  # a person types; the shell is back at its read before the next line arrives
        drain(connection)

    return [str(ws.listen(intruder)), ws.rng.choice(["-i", "-s"])]


_SECRETS = (
    ".ssh/id_rsa",
    ".ssh/id_ed25519",
    ".ssh/config",
    ".aws/credentials",
    ".netrc",
    ".git-credentials",
    ".bash_history",
    ".config/browser/logins.key",
    ".pgpass",
)


def _fake_host(ws: Workspace) -> list[str]:
    """A made-up file system below `host`: homes with invented secrets, an etc, and ordinary files between them."""
    for user in ws.rng.sample(["alice", "bob", "carol", "dave", "erin"], ws.rng.randint(1, 4)):
        ws.files(f"host/home/{user}", 1, 6, lines=10)
        ws.write(f"host/home/{user}/.bashrc", "umask 022\n")
        for secret in ws.rng.sample(_SECRETS, ws.rng.randint(3, len(_SECRETS))):
            ws.write(f"host/home/{user}/{secret}", f"password = invented {ws.words(4)}\n")
    for name in ("passwd", "shadow", "ssl/private/server.key"):
        ws.write(f"host/etc/{name}", f"password = invented {ws.words(6)}\n")
    ws.files("host/etc/conf.d", 2, 6, lines=5)
    return ["host"]


def _victim_files(ws: Workspace) -> list[str]:
    ws.files("victim", 4, 14, lines=300)
    return ["victim", ws.words(1)]


def _ports(ws: Workspace) -> list[str]:
    found = ws.listen(lambda connection: None)
    first = max(1024, found - ws.rng.randint(10, 60))
    return [str(first), str(min(65535, found + ws.rng.randint(5, 40)))]


def _theft(ws: Workspace) -> list[str]:
    ws.files("victim", 4, 20, lines=300)
    return ["victim", str(ws.listen(drain))]


def _web_shell(ws: Workspace) -> list[str]:
    ws.files("victim", 2, 5)
    # The requests name a command by its number: a stranger on this machine who finds the port gains nothing.
    wanted = [ws.rng.randrange(carriers.WEB_SHELL_COMMANDS) for _ in range(ws.rng.randint(1, 3))]

    def intruder() -> None:
        port = wait_for_port(ws.folder / "port")
        for number in wanted:
            fetch(port, f"/run?n={number}")

    ws.meanwhile(intruder)
    return [str(len(wanted))]


INTRUSIONS = {
    "credential-sweep": Intrusion(_fake_host, carriers.CREDENTIAL_SWEEP, frozenset({"grep", "find", "cat"})),
    "data-theft": Intrusion(_theft, carriers.DATA_THEFT, frozenset({"tar", "gzip", "cat"})),
    "mass-encryption": Intrusion(_victim_files, carriers.MASS_ENCRYPTION, frozenset({"openssl"})),
    "persistence": Intrusion(_fake_host, carriers.PERSISTENCE, frozenset({"setsid"})),
    "port-sweep": Intrusion(_ports, carriers.PORT_SWEEP, frozenset()),
    "reverse-shell": Intrusion(_reverse_shell, carriers.REVERSE_SHELL, frozenset({"sh"})),
    "web-shell": Intrusion(_web_shell, carriers.WEB_SHELL, frozenset({"sh"})),
}
