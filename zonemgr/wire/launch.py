"""How work is handed to the launcher: the protocol, and the asking side of it.

A connection carries one piece of work: the words and the environment of a run of the command line, or of the start of
a supervisor.  The launcher's fork answers with a handle on itself (a pidfd) before it begins, and begins only when it
is told to: whoever loses patience before that has lost nothing, and the work is done once or not at all.  The caller's
descriptors come with that word, and not before: in the hands of one that was stopped they would stay open.  In the end
comes the exit status; end of file without one means that nobody knows.

The thin client is made of this module, so it imports what the interpreter has built in: ``posix`` and ``_socket`` in
place of ``os`` and ``socket``, which cost more than everything else here.  Without ``__future__`` too, which is a
module like any other.
"""

import _socket
import posix
import sys

NAME = "launcher"  # the socket, in the instance's run folder
SWITCH = "ZONEMGR_LAUNCHER"  # environment: "no" does without, "must" refuses to
RUN, SERVE = b"run", b"serve"
PATIENCE_S = 0.25  # for an answer; a start without help takes about as long
LONG_PATIENCE_S = 60.0  # of a caller who does nothing without help
REQUEST_MAX = 8 << 20  # the kernel's own limit for words and environment together is 6 MiB
FDS_MAX = 8
SIGNALLED = 1 << 16  # a status from here on is this and the signal that ended the run
_MAGIC = b"zonemgr-launcher-2"
_LENGTH = 4
_ENCODING = sys.getfilesystemencoding()
_HANDLES_MAX = 2  # its pidfd, and the way into our control group
_MOMENT_S = 0.1
_AT_ONCE_S = 0.02  # a caller sends as soon as it is connected


class Work:
    """Something that the launcher does for us.  ``go`` begins it, ``wait`` waits for its end."""

    def __init__(self, connection: _socket.socket, fds: list[int], pid_fd: int, place_fd: int = -1) -> None:
        self.connection = connection
        self.fds = fds  # what it works with
        self.pid_fd = pid_fd
        self.place_fd = place_fd  # where to write its pid to have it in our control group

    def go(self) -> None:
        """Let it begin.  OSError when it has gone, and has not begun."""
        self.connection.settimeout(None)
        rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in self.fds)
        self.connection.sendmsg([b"G"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)], _socket.MSG_NOSIGNAL)

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Its status; None when it cannot be known.  TimeoutError."""
        self.connection.settimeout(timeout_s)
        try:
            data = self.connection.recv(_LENGTH)
        except ConnectionResetError:
            data = b""
        return int.from_bytes(data, "big") if len(data) == _LENGTH else None

    def wait_at_home(self, pid: int) -> int | None:
        """As ``wait``, for a run: one that takes longer than a moment comes into our control group, with what it has
        started where it is.
        """
        if self.place_fd >= 0:
            try:
                return self.wait(_MOMENT_S)
            except TimeoutError:
                self._bring_home(pid)
        return self.wait()

    def _bring_home(self, pid: int) -> None:
        try:
            self._bring(pid, _place_of(pid))
        except OSError:
            pass  # it has ended, or nobody may be added there: it goes on where it is
        posix.close(self.place_fd)
        self.place_fd = -1

    def _bring(self, pid: int, place: bytes) -> None:
        """Parents first: what they start from then on is born at home.  What is elsewhere belongs there."""
        if _place_of(pid) != place:
            return
        cpus = _cpus(pid)
        posix.write(self.place_fd, b"%d" % pid)
        _keep_on(cpus)
        for task in posix.listdir(f"/proc/{pid}/task"):
            for child in _read(f"/proc/{pid}/task/{task}/children").split():
                try:
                    self._bring(int(child), place)
                except OSError:
                    continue  # it has ended

    def close(self) -> None:
        """Let go of it.  A run of the command line hears that as a hang-up."""
        self.connection.close()
        posix.close(self.pid_fd)
        if self.place_fd >= 0:
            posix.close(self.place_fd)


def _place_of(pid: int) -> bytes:
    """Its control group on cgroup2."""
    return _read(f"/proc/{pid}/cgroup").rpartition(b"0::")[2]


def _cpus(pid: int) -> dict[int, set[int]]:
    """Where its threads run."""
    return {int(task): posix.sched_getaffinity(int(task)) for task in posix.listdir(f"/proc/{pid}/task")}


def _keep_on(cpus: dict[int, set[int]]) -> None:
    """Before Linux 6.2 a thread that comes to another control group may run wherever that may."""
    for task, wanted in cpus.items():
        try:
            if posix.sched_getaffinity(task) != wanted:
                posix.sched_setaffinity(task, wanted)
        except OSError:
            continue  # it has ended, or that group has none of these


def _read(path: str) -> bytes:
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        return posix.read(fd, 1 << 16)
    finally:
        posix.close(fd)


def identity(package: str) -> str:
    """Which program we are: only a launcher of the same one may do our work."""
    return f"{package}:{sys.hexversion:x}"


def encoded(text: str) -> bytes:
    """As os.fsencode."""
    return text.encode(_ENCODING, "surrogateescape")


def decoded(text: bytes) -> str:
    """As os.fsdecode."""
    return text.decode(_ENCODING, "surrogateescape")


def run_folder(root: str) -> str:
    """The run folder of the instance below a root (``store.paths`` has the same, and loads more)."""
    return f"{root.rstrip('/')}/run/zonemgr"


def patience_s(switch: str) -> float:
    """How long a caller with this switch waits for an answer."""
    return LONG_PATIENCE_S if switch == "must" else PATIENCE_S


def ask(
    folder: str,
    kind: bytes,
    who: str,
    words: list[str],
    environment: dict[bytes, bytes],
    fds: list[int],
    patience_s: float = PATIENCE_S,
) -> Work | None:
    """Hand work to the launcher of the run folder, to be done with these descriptors (kept open by the caller until it
    has begun).  None when there is none that would do it: nothing has happened.
    """
    connection = _connected(folder)
    if connection is None:
        return None
    try:
        connection.settimeout(patience_s)
        handles = _hand_over(connection, _encoded(kind, who, words, environment))
    except OSError:
        handles = []
    except BaseException:
        connection.close()
        raise
    if not handles:
        connection.close()
        return None
    return Work(connection, fds, *handles)


def _connected(folder: str) -> _socket.socket | None:
    path = f"{folder}/{NAME}"
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    folder_fd = -1
    try:
        if len(encoded(path)) > 107:
            folder_fd = posix.open(folder, posix.O_PATH | posix.O_CLOEXEC)
            path = f"/proc/self/fd/{folder_fd}/{NAME}"
        connection.connect(path)
    except OSError:
        connection.close()
        return None
    finally:
        if folder_fd >= 0:
            posix.close(folder_fd)
    return connection


def _encoded(kind: bytes, who: str, words: list[str], environment: dict[bytes, bytes]) -> bytes:
    """NUL between fields, which none of them can contain; in front the length."""
    head = [_MAGIC, kind, encoded(who), b"%d" % len(words)]
    pairs = [name + b"=" + value for name, value in environment.items()]
    payload = b"\0".join([*head, *map(encoded, words), *pairs])
    return len(payload).to_bytes(_LENGTH, "big") + payload


def _hand_over(connection: _socket.socket, data: bytes) -> list[int]:
    """Send the request, and receive the handles; none when we are not wanted."""
    connection.sendall(data, _socket.MSG_NOSIGNAL)
    answer, ancillary, _flags, _address = connection.recvmsg(
        1, _socket.CMSG_SPACE(4 * _HANDLES_MAX), _socket.MSG_CMSG_CLOEXEC
    )
    handles = received(ancillary)
    if answer == b"H" and handles:
        return handles
    for fd in handles:
        posix.close(fd)
    return []


def received(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in what recvmsg has returned."""
    fds = []
    for level, kind, data in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds += [int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data) - 3, 4)]
    return fds


def wants_supervisor(connection: _socket.socket) -> bool:
    """Whether a request for a supervisor comes at once on the connection; nothing of it is taken."""
    beginning = b"\0".join([_MAGIC, SERVE, b""])
    connection.settimeout(_AT_ONCE_S)
    try:
        data = connection.recv(_LENGTH + len(beginning), _socket.MSG_PEEK)
    except OSError:
        return False
    return data[_LENGTH:] == beginning


def decode(payload: bytes) -> tuple[bytes, str, list[str], dict[bytes, bytes]]:
    """Kind, identity, words and environment of a request (without its length).  Raises ValueError."""
    magic, kind, who, count, *rest = payload.split(b"\0")
    if magic != _MAGIC or kind not in (RUN, SERVE):
        raise ValueError("not a request")
    words, pairs = rest[: int(count)], rest[int(count) :]
    environment = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
    return kind, decoded(who), list(map(decoded, words)), environment


def status_message(status: int) -> bytes:
    """How a status is told."""
    return status.to_bytes(_LENGTH, "big")
