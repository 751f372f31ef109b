"""Process 1 of a native zone; by the names halt, poweroff, reboot and shutdown also the programs that talk to it.

As process 1 it reaps, runs the zone's start-up scripts, serves the console and takes the zone down in good order.  It
is what idles in every native zone, so it imports only what the interpreter has built in (``posix``, without what ``os``
puts around it: a sixth of such a start), and keeps no shell on a console that nobody uses.  It does not supervise
services, mount anything or set the network up: the zone is complete when it starts.  Python 3.9 has to be enough.

Start-up   /etc/rc.d/S??* in order of their names, each with "start"; one that takes longer than a minute goes on alone.
Console    a login shell for root once somebody presses Enter; /etc/console-login instead, if that is an executable.
Arguments  -s: a shell on the console first, start-up after it ends.  -m verbose: name each script.  Others are ignored.
Signals    INT, TERM, RTMIN+5 reboot; USR1, RTMIN+3 halt; USR2, PWR, RTMIN+4 power off.
Down       /etc/rc.d/S??* in reverse order with "stop", ten seconds each; TERM to all (HUP to what has a terminal), five
           seconds, KILL, reboot(2).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, ignore-errors

import _signal as signal
import errno
import fcntl
import posix
import select
import sys
import time

RC_FOLDER = "/etc/rc.d"
CONSOLE_LOGIN = "/etc/console-login"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_WAIT_S, STOP_WAIT_S, TERM_WAIT_S, KILL_WAIT_S, LISTEN_WAIT_S = 60, 10, 5, 2, 5
QUICK_END_S, BACK_OFF_MAX_S = 1, 30
SAY_ATTEMPTS = 15  # a tenth of a second in all
MACHINE_RESTART, MACHINE_HALT, MACHINE_POWER_OFF = 0x01234567, 0xCDEF0123, 0x4321FEDC
COMMANDS = {"reboot": MACHINE_RESTART, "halt": MACHINE_HALT, "poweroff": MACHINE_POWER_OFF}
ORDERS = {
    signal.SIGINT: "reboot",
    signal.SIGTERM: "reboot",
    signal.SIGUSR1: "halt",
    signal.SIGUSR2: "poweroff",
    signal.SIGPWR: "poweroff",
    signal.SIGRTMIN + 3: "halt",
    signal.SIGRTMIN + 4: "poweroff",
    signal.SIGRTMIN + 5: "reboot",
}
TIOCSCTTY, TIOCNOTTY = 0x540E, 0x5422
FOLDER, REGULAR, KIND_MASK = 0o040000, 0o100000, 0o170000


def reboot_now(verb):
    """End the pid namespace.  Returns only when the kernel refuses, with its reason."""
    import ctypes  # 1.7 MB that an idle zone does not carry around

    libc = ctypes.CDLL(None, use_errno=True)
    libc.reboot(ctypes.c_int(COMMANDS[verb]))
    return posix.strerror(ctypes.get_errno())


def is_kind(path, kind):
    """Whether there is a file of this kind."""
    try:
        return posix.stat(path).st_mode & KIND_MASK == kind
    except OSError:
        return False


def describe(status):
    """A wait status in words, empty for success."""
    if posix.WIFSIGNALED(status):
        return f"killed by signal {posix.WTERMSIG(status)}"
    code = posix.WEXITSTATUS(status)
    return f"exit status {code}" if code else ""


def scripts():
    """The start-up scripts, in order."""
    try:
        names = sorted(posix.listdir(RC_FOLDER))
    except OSError:
        return []
    paths = [f"{RC_FOLDER}/{name}" for name in names if name[0] == "S" and len(name) >= 3]
    return [path for path in paths if is_kind(path, REGULAR) and posix.access(path, posix.X_OK)]


def root_shell():
    """The shell of root's entry in /etc/passwd, or what there is."""
    candidates = ["/bin/bash", "/bin/sh"]
    try:
        with open("/etc/passwd", "rb") as passwd:
            for line in passwd.read(1 << 20).split(b"\n"):
                if line.startswith(b"root:"):
                    candidates.insert(0, line.split(b":")[-1].decode("utf-8", "surrogateescape"))
    except OSError:
        pass
    for shell in candidates:
        if shell and posix.access(shell, posix.X_OK):
            return shell
    return "/bin/sh"


def console_program():
    """(path, argv) of what the console gets."""
    if posix.access(CONSOLE_LOGIN, posix.X_OK):
        return CONSOLE_LOGIN, [CONSOLE_LOGIN]
    shell = root_shell()
    return shell, ["-" + shell.rpartition("/")[2]]


def make_sane():
    """Give the console back the settings of a terminal that people type on."""
    import termios

    try:
        settings = termios.tcgetattr(0)
        settings[0] |= termios.BRKINT | termios.ICRNL | termios.IXON | termios.IMAXBEL
        settings[1] |= termios.OPOST | termios.ONLCR
        settings[3] |= termios.ISIG | termios.ICANON | termios.IEXTEN
        settings[3] |= termios.ECHO | termios.ECHOE | termios.ECHOK | termios.ECHOCTL | termios.ECHOKE
        termios.tcsetattr(0, termios.TCSANOW, settings)
    except termios.error:
        pass


class Init:
    """Process 1.  Everything it waits for is waited for in ``wait``."""

    def __init__(self, arguments):
        self.single = "-s" in arguments
        self.verbose = any(pair == ("-m", "verbose") for pair in zip(arguments, arguments[1:]))  # noqa: B905, RUF007
        self.order = None
        # Ours alone: scripts and shells do not speak for the zone.
        self.manager = posix.environ.pop(b"NOTIFY_SOCKET", b"")
        self.ended = {}  # pid -> wait status, of the children that are waited for by name
        self.awaited = set()
        self.console_pid = 0
        self.console_since = 0.0
        self.console_not_before = 0.0
        self.back_off_s = 0
        self.wake_fd, writing_fd = posix.pipe2(posix.O_NONBLOCK | posix.O_CLOEXEC)
        signal.set_wakeup_fd(writing_fd, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, *ORDERS):
            signal.signal(number, lambda number, frame: None)  # the byte in the pipe is what counts
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self.take_console()

    # -- the console

    def take_console(self):
        """Stop being the console's session, so that its shell can be; and get a way to write that never blocks."""
        try:
            fcntl.ioctl(0, TIOCNOTTY)
        except OSError:
            pass
        try:
            flags = posix.O_WRONLY | posix.O_NOCTTY | posix.O_NONBLOCK | posix.O_CLOEXEC
            self.out_fd = posix.open("/proc/self/fd/1", flags)
        except OSError:
            self.out_fd = 1
        self.has_terminal = posix.isatty(0)
        if self.has_terminal:
            make_sane()

    def reopen_console(self):
        """After a hang-up (login(1) makes one) the old descriptors are dead."""
        try:
            fd = posix.open("/dev/console", posix.O_RDWR | posix.O_NOCTTY | posix.O_CLOEXEC)
        except OSError:
            return
        if 136 <= posix.major(posix.fstat(fd).st_rdev) <= 143:  # a pty, so not a console of the host
            for standard in (0, 1, 2):
                posix.dup2(fd, standard)
            if self.out_fd > 2:
                posix.close(self.out_fd)
            self.take_console()
        posix.close(fd)

    def say(self, text):
        """One line for the console; lost when nobody takes it, rather than waited for."""
        line = (f"{posix.uname().nodename}: {text}\n").encode()
        for attempt in range(SAY_ATTEMPTS):
            try:
                posix.write(self.out_fd, line)
                return
            except BlockingIOError:  # full, or only busy: the kernel says EAGAIN too while another process is writing
                time.sleep(0.001 * attempt)
            except OSError as error:
                if error.errno != errno.EIO:
                    return
                self.reopen_console()

    def start_console(self):
        """Start what the console gets, in a session of its own that has it as its terminal."""
        path, argv = console_program()
        self.console_since = time.monotonic()
        self.console_pid = self.spawn(path, argv, console=True)
        if not self.console_pid:
            self.console_not_before = self.console_since + BACK_OFF_MAX_S

    def console_ended(self, status):
        why = describe(status)
        if why and posix.WIFSIGNALED(status):
            self.say("console: " + why)
        lived_s = time.monotonic() - self.console_since
        self.back_off_s = min(max(1, 2 * self.back_off_s), BACK_OFF_MAX_S) if lived_s < QUICK_END_S else 0
        self.console_pid = 0
        self.console_not_before = time.monotonic() + self.back_off_s
        if not self.single and not self.order:
            self.offer_console()

    def offer_console(self):
        if self.has_terminal:
            make_sane()
            self.say("press Enter for a console shell")

    # -- processes

    def spawn(self, path, argv, console=False):
        """Start a program in its own session.  Its pid, or 0 after saying why not."""
        reading_fd, writing_fd = posix.pipe2(posix.O_CLOEXEC)
        try:
            pid = posix.fork()
        except OSError as error:
            posix.close(reading_fd)
            posix.close(writing_fd)
            self.say(f"cannot start {path}: {error.strerror}")
            return 0
        if pid == 0:
            self.become(path, argv, console, writing_fd)
        posix.close(writing_fd)
        failure = posix.read(reading_fd, 16)
        posix.close(reading_fd)
        if failure:
            self.say(f"cannot start {path}: {posix.strerror(int(failure))}")
        return pid

    def become(self, path, argv, console, failure_fd):
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these, and exec would hand that on
                signal.signal(number, signal.SIG_DFL)
            posix.setsid()
            environment = dict(posix.environ)
            environment.setdefault(b"PATH", PATH)
            if console:
                if posix.isatty(0):
                    fcntl.ioctl(0, TIOCSCTTY, 0)
                environment.setdefault(b"TERM", "xterm")
                environment.update({b"HOME": "/root", b"USER": "root", b"LOGNAME": "root", b"SHELL": path})
                posix.chdir("/root" if is_kind("/root", FOLDER) else "/")
            else:
                null_fd = posix.open("/dev/null", posix.O_RDONLY)
                posix.dup2(null_fd, 0)
                posix.close(null_fd)
            posix.execve(path, argv, environment)
        except OSError as error:
            posix.write(failure_fd, b"%d" % error.errno)
        finally:
            posix._exit(127)

    def reap(self):
        while True:
            try:
                pid, status = posix.waitpid(-1, posix.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.awaited:
                self.ended[pid] = status
            if pid == self.console_pid:
                self.console_ended(status)

    def wait(self, limit_s=None):
        """Wait for the next event: a signal, input on an idle console, or the time limit (in seconds)."""
        now = time.monotonic()
        poller = select.poll()
        poller.register(self.wake_fd, select.POLLIN)
        if self.has_terminal and not self.console_pid and not self.order:
            pause_s = self.console_not_before - now
            if pause_s <= 0:
                poller.register(0, select.POLLIN)
            else:
                limit_s = pause_s if limit_s is None else min(limit_s, pause_s)
        ready = dict(poller.poll(None if limit_s is None else max(0, limit_s) * 1000 + 1))
        if self.wake_fd in ready:
            for number in posix.read(self.wake_fd, 4096):
                self.order = self.order or ORDERS.get(number)
        self.reap()
        if 0 in ready and not self.console_pid:
            self.console_input(ready[0])

    def console_input(self, events):
        if not events & select.POLLIN or events & select.POLLHUP:
            self.reopen_console()
            self.console_not_before = time.monotonic() + QUICK_END_S
        else:
            self.start_console()

    def wait_for(self, pid, limit_s, interruptible):
        """Wait until a child ends.  Its wait status; None when the time limit or (if wanted) an order came first."""
        self.awaited.add(pid)
        deadline = time.monotonic() + limit_s
        self.reap()
        while pid not in self.ended:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or (interruptible and self.order):
                break
            self.wait(left_s)
        self.awaited.discard(pid)
        return self.ended.pop(pid, None)

    def tell_manager(self, text):
        """sd_notify(3), from a child: sockets are nothing that an idle zone carries around."""
        if not self.manager:
            return
        try:
            pid = posix.fork()
        except OSError as error:
            self.say(f"cannot tell the manager: {error.strerror}")
            return
        if pid == 0:
            try:
                import _socket

                to = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK)
                to.sendto(text, self.manager)
            finally:
                posix._exit(0)

    # -- up and down

    def run_script(self, path, word, limit_s):
        if self.verbose:
            self.say(f"{path} {word}")
        pid = self.spawn(path, [path, word])
        if not pid:
            return
        status = self.wait_for(pid, limit_s, interruptible=word == "start")
        if status is None and not self.order:
            self.say(f"{path} {word}: still running after {limit_s} seconds, going on without it")
        elif status is None and word == "stop":
            self.say(f"{path} {word}: not done after {limit_s} seconds, killed")
            posix.killpg(pid, signal.SIGKILL)
        elif status and describe(status):
            self.say(f"{path} {word}: {describe(status)}")

    def prepare(self):
        """What programs expect to find in an empty /run."""
        posix.umask(0o022)
        for path, mode in (("/run/lock", 0o1777), ("/run/shm", 0o1777)):
            try:
                posix.mkdir(path)
                posix.chmod(path, mode)
            except OSError:
                pass  # there already, or no /run: nothing that a zone cannot live without

    def up(self):
        self.prepare()
        if self.single:
            self.say("single user: start-up goes on when this shell ends")
            self.start_console()
            while self.console_pid and not self.order:
                self.wait()
            self.single = False
        for path in scripts():
            if self.order:
                return
            self.run_script(path, "start", START_WAIT_S)
        self.tell_manager(b"READY=1")
        if not self.order and not self.console_pid:
            self.say("up")
            self.offer_console()

    def down(self):
        self.say({"reboot": "rebooting", "halt": "halting", "poweroff": "powering off"}[self.order])
        for path in reversed(scripts()):
            self.run_script(path, "stop", STOP_WAIT_S)
        self.signal_all(signal.SIGTERM)
        for pid in with_terminal():  # interactive shells ignore TERM
            try:
                posix.kill(pid, signal.SIGHUP)
            except OSError:
                pass
        self.signal_all(signal.SIGCONT)
        if not self.wait_until_alone(TERM_WAIT_S):
            self.signal_all(signal.SIGKILL)
            self.wait_until_alone(KILL_WAIT_S)
        # No sync: the kernel and its page cache live on.
        why = reboot_now(self.order)
        self.say(f"{self.order}: {why}")

    def signal_all(self, number):
        try:
            posix.kill(-1, number)
            return True
        except ProcessLookupError:
            return False
        except OSError:
            return True

    def wait_until_alone(self, limit_s):
        """Wait until no other process is left.  Children announce their end, what entered has to be looked for."""
        deadline, pause_s = time.monotonic() + limit_s, 0.01
        while self.signal_all(0):
            if time.monotonic() >= deadline:
                return False
            self.wait(pause_s)
            pause_s = min(2 * pause_s, 0.1)
        return True

    def run(self):
        self.say("starting")
        self.guarded(self.up)
        while not self.order:
            self.guarded(self.wait)
        self.guarded(self.down)
        # Going down has failed, or reboot(2) is not allowed: dying is the only other way to end the zone.
        posix._exit(1)

    def guarded(self, step):
        """Process 1 must not die of a surprise."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - the zone would end with it
            line = error.__traceback__.tb_next.tb_lineno
            self.say(f"internal error: {type(error).__name__}: {error} (line {line})")
            time.sleep(1)


def with_terminal():
    """The processes that have a controlling terminal."""
    for name in posix.listdir("/proc"):
        if name.isdigit() and name != "1":
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    if int(stat.read().rpartition(b") ")[2].split()[4]):
                        yield int(name)
            except (OSError, IndexError, ValueError):
                pass


USAGE = """usage: halt | poweroff | reboot [-f]
       shutdown [-h | -P | -H | -r] [now]
       init 0 | 5 | 6
  -f  at once: no stop scripts, no signals
"""


def parse(name, words):
    """(verb, force) of a command line, or None when it is wrong.  A verb of "" asks for nothing."""
    verb, force = ("poweroff" if name == "shutdown" else name), False
    if name in ("init", "telinit"):
        return ({"0": "halt", "5": "poweroff", "6": "reboot", "q": "", "Q": ""}.get("".join(words)), False)
    for word in words:
        if word in ("-f", "--force"):
            force = True
        elif word in ("-w", "--wtmp-only"):
            verb = ""
        elif word in ("-p", "-P", "--poweroff"):
            verb = "poweroff"
        elif word in ("-H", "--halt") or (word == "-h" and name == "halt"):
            verb = "halt"
        elif word in ("-r", "--reboot") and name == "shutdown":
            verb = "reboot"
        elif word == "-h" and name == "shutdown":
            verb = "poweroff"
        elif word in ("-d", "-n", "--no-wall", "--no-wtmp", "-y", "-i5", "-g0") or word in ("now", "+0", "0"):
            continue
        else:
            return None
    return verb, force


def wait_for_listener(number):
    """Wait until process 1 catches the signal: to others it is immune, and the order would be lost."""
    deadline = time.monotonic() + LISTEN_WAIT_S
    while time.monotonic() < deadline:
        with open("/proc/1/status", "rb") as status:
            caught = [line.split()[1] for line in status if line.startswith(b"SigCgt:")]
        if caught and int(caught[0], 16) >> (number - 1) & 1:
            return True
        time.sleep(0.01)
    return False


def command(name, words):
    """Ask process 1, or with -f the kernel.  The exit status."""
    if words in (["--help"], ["-?"]):
        sys.stdout.write(USAGE)
        return 0
    verb, force = parse(name, words) or (None, False)
    if verb is None:
        sys.stderr.write(USAGE)
        return 2
    if not verb:
        return 0
    if force:
        sys.stderr.write(f"{name}: {reboot_now(verb)}\n")
        return 1
    number = {"reboot": signal.SIGTERM, "halt": signal.SIGUSR1, "poweroff": signal.SIGUSR2}[verb]
    try:
        posix.kill(1, 0)
        if not wait_for_listener(number):
            sys.stderr.write(f"{name}: process 1 takes no orders; use -f\n")
            return 1
        posix.kill(1, number)
    except OSError as error:
        sys.stderr.write(f"{name}: cannot tell process 1: {error.strerror}\n")
        return 1
    return 0


def main():
    if posix.getpid() == 1:
        Init(sys.argv[1:]).run()
    return command(sys.argv[0].rpartition("/")[2], sys.argv[1:])
