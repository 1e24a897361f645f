"""The fresh folder in which one run of a recorded program happens, and what the builders of workloads need."""

import dataclasses
import http.client
import pathlib
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable

from syscall_lm.errors import SyscallLMError

SEARCH_PATH = "/usr/local/bin:/usr/bin:/bin"
PATIENCE = 20.0  # seconds that a peer waits for the recorded program before it gives up

WORDS = (
    "amber anchor basil birch cedar chalk cinder clover copper coral delta ember fern flint garnet harbor hazel indigo "
    "ivory jasper juniper kelp larch linen maple marble meadow mint moss nickel oak olive onyx opal pearl pebble pine "
    "quartz raven reed ridge river rowan saffron sage slate spruce stone thistle timber topaz umber valley willow"
).split()


def installed(program: str) -> bool:
    """Whether a program is on the search path that recorded programs get."""
    return shutil.which(program, path=SEARCH_PATH) is not None


@dataclasses.dataclass
class Workspace:
    """A run's folder, its random choices and its peers.

    The recorded command starts in `folder`. Everything that a builder does is not recorded; only the command is.

    Attributes:
      folder: empty at first; removed after the run.
      home: the run's HOME, beside `folder` so that walks over `folder` do not meet it.
      rng: every choice is drawn from it, so that a seed fixes the workload.
    """

    folder: pathlib.Path
    home: pathlib.Path
    rng: random.Random

    def __post_init__(self):
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    @property
    def environment(self) -> dict[str, str]:
        """A clean environment, the same for every run but for the folders."""
        return {
            "PATH": SEARCH_PATH,
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "TMPDIR": str(self.home / "tmp"),
            "GIT_CONFIG_NOSYSTEM": "1",
        }

    def words(self, count: int) -> str:
        """`count` random words."""
        return " ".join(self.rng.choices(WORDS, k=count))

    def text(self, lines: int) -> str:
        """Lines of random words with a number in front."""
        return "".join(f"{self.rng.randrange(1000)} {self.words(self.rng.randint(2, 9))}\n" for _ in range(lines))

    def write(self, name: str, text: str | bytes, executable: bool = False) -> str:
        """Writes a file, with its folders; returns the name."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        if executable:
            path.chmod(0o755)
        return name

    def files(self, folder: str, least: int, most: int, lines: int = 40, ending: str = ".txt") -> list[str]:
        """Writes `least` to `most` text files below `folder`, some of them in subfolders; returns their names."""
        names = []
        for number in range(self.rng.randint(least, most)):
            place = self.rng.choice(["", "", f"{self.rng.choice(WORDS)}/"])
            name = f"{folder}/{place}{self.rng.choice(WORDS)}-{number}{ending}"
            names.append(self.write(name, self.text(self.rng.randint(1, lines))))
        return names

    def prepare(self, *command: str) -> None:
        """Runs a command of the preparation, unrecorded.

        Raises:
          SyscallLMError: it fails.
        """
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if done.returncode:
            message = done.stderr.decode(errors="replace").strip()[-200:]
            raise SyscallLMError(f"preparing a run: {command[0]} failed with code {done.returncode} ({message})")

    def listen(self, serve: Callable[[socket.socket], None], connections: int = 1) -> int:
        """Serves connections on a free loopback port, unrecorded, and returns the port."""
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(PATIENCE)
        self._sockets.append(listener)

        def accept() -> None:
            for _ in range(connections):
                try:
                    connection, _address = listener.accept()
                except OSError:  # the run is over, or nobody came
                    return
                with connection:
                    connection.settimeout(PATIENCE)
                    serve(connection)

        self.meanwhile(accept)
        return listener.getsockname()[1]

    def meanwhile(self, work: Callable[[], None]) -> None:
        """Runs `work` in a thread beside the recorded command. Network errors end it: the command may leave first."""

        def quietly() -> None:
            try:
                work()
            except OSError:
                return

        thread = threading.Thread(target=quietly, daemon=True)
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        """Ends the peers."""
        for listener in self._sockets:
            try:
                listener.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits in accept
            except OSError:
                pass  # it had no connection, or is closed
            listener.close()
        for thread in self._threads:
            thread.join(PATIENCE)


def serve_page(page: bytes) -> Callable[[socket.socket], None]:
    """A web server for `Workspace.listen` that answers one request with `page`."""

    def serve(connection: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request and len(request) < 65536:
            received = connection.recv(4096)
            if not received:
                return
            request += received
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(page)}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode() + page)

    return serve


def drain(connection: socket.socket) -> None:
    """A sink for `Workspace.listen`: reads until the other side closes."""
    while connection.recv(65536):
        pass


def wait_for_port(path: pathlib.Path) -> int:
    """Waits until a recorded server has written its port and a newline to `path`.

    Raises:
      OSError: it never did.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if path.is_file() and (text := path.read_text()).endswith("\n"):
            return int(text)
        time.sleep(0.02)
    raise OSError(f"{path}: no port was announced")


def fetch(port: int, path: str) -> None:
    """One request to a recorded web server; a redirect is not followed, for servers end after a number of requests.

    Raises:
      OSError: no answer came.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        connection.getresponse().read()
    except http.client.HTTPException as error:
        raise OSError(f"{path}: no answer that is one ({error!r})") from error
    finally:
        connection.close()
