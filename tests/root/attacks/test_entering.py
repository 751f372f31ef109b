"""What enters a zone brings nothing with it, and cannot be caught while it does: init at boot, and login."""

from __future__ import annotations

import hashlib
import json
import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.instance import Instance
from tests.kit.waiting import until
from tests.root.attacks.inside import PRELUDE, ask
from zonemgr.linux import caps
from zonemgr.store import instance as instances

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")

TAKEN = frozenset({"net_raw", "mknod"})


@pytest.fixture(scope="module")
def limited(installed: Instance) -> Instance:
    """The zone, booted with less privileges than the default."""
    installed.run("config", "web", "set limitpriv=default,!net_raw,!mknod")
    installed.run("boot", "web")
    return installed


def record(instance: Instance) -> instances.Instance:
    found = instances.read(instance.layout, "web")
    assert found is not None
    assert found.init is not None
    return found


def status_of(pid: int | str) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def assert_confined(status: dict[str, str], allowed: frozenset[str]) -> None:
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    for kind in ("CapBnd", "CapPrm", "CapEff"):
        assert caps.names(int(status[kind], 16)) == allowed, kind
    assert status["Seccomp"] == "2"


@pytest.mark.attack("inherited capabilities", "CVE-2022-27650", "CVE-2022-29162", "CVE-2022-24769")
def test_init_and_login_have_the_capabilities_of_limitpriv_and_the_filter(limited: Instance) -> None:
    found = record(limited)
    allowed = frozenset(found.capabilities)
    assert not allowed & TAKEN
    assert not allowed & {"sys_module", "sys_rawio", "sys_time", "bpf", "perfmon", "mac_admin", "syslog"}
    assert_confined(status_of(found.init.pid if found.init else 0), allowed)
    text = limited.login("web", "cat", "/proc/self/status")
    pairs = (line.partition(":") for line in text.splitlines())
    assert_confined({key: value.strip() for key, _, value in pairs}, allowed)


@pytest.mark.attack("inherited capabilities", "CVE-2022-29162")
def test_a_user_who_logs_in_has_no_capability_and_the_same_bounds(limited: Instance) -> None:
    text = limited.run("login", "-l", "nobody", "web", "--", "cat", "/proc/self/status").stdout
    status = {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    assert {int(status[kind], 16) for kind in ("CapInh", "CapAmb", "CapPrm", "CapEff")} == {0}
    assert caps.names(int(status["CapBnd"], 16)) == frozenset(record(limited).capabilities)
    assert status["Seccomp"] == "2"


@pytest.mark.attack("leaked descriptors and folders", "CVE-2024-21626", "CVE-2016-9962")
def test_init_holds_no_descriptor_folder_or_variable_of_the_host(limited: Instance) -> None:
    init = record(limited).init
    assert init is not None
    folder = Path(f"/proc/{init.pid}")
    links = [os.readlink(entry) for entry in (folder / "fd").iterdir()]
    assert [link for link in links if not link.startswith(("/dev/console", "/dev/pts/", "pipe:", "/1"))] == []
    assert "zonemgr" not in (folder / "maps").read_text()
    assert os.stat(folder / "cwd").st_ino == os.stat(folder / "root").st_ino
    pairs = (text.partition("=") for text in (folder / "environ").read_text().split("\0") if text)
    variables = {name: value for name, _, value in pairs}
    assert variables.pop("NOTIFY_SOCKET") == "/run/host/notify"  # the zone's own
    assert variables.keys() <= {"PATH", "TERM", "container", "container_uuid", "container_ttys"}


@pytest.mark.attack("leaked descriptors and folders", "CVE-2024-21626", "CVE-2016-8649")
def test_login_brings_three_descriptors_a_folder_in_the_zone_and_an_own_session(limited: Instance) -> None:
    program = """
held = [int(name) for name in os.listdir("/proc/self/fd")]
answer([[fd for fd in held if os.path.exists("/proc/self/fd/%d" % fd) or fd < 3], os.getcwd(),
        os.getsid(0) == os.getpid() == os.getpgid(0), sorted(os.environ)])
"""
    secret_fd = os.open("/root", os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(secret_fd, True)
    try:
        done = subprocess.run(
            [*limited.command, "login", "web", "--", "/usr/bin/python3", "-c", PRELUDE + program],
            env={**limited.env, "HOST_SECRET": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            pass_fds=(secret_fd,),
            check=True,
        )
    finally:
        os.close(secret_fd)
    held, folder, leads_its_session, variables = json.loads(done.stdout)
    assert held == [0, 1, 2]
    assert folder in ("/", "/root")
    assert leads_its_session
    assert "HOST_SECRET" not in variables
    assert not [name for name in variables if name.startswith(("ZONEMGR", "PYTHON"))]


@pytest.fixture
def accounts(limited: Instance) -> Iterator[Path]:
    """The zone's /etc/passwd on the host; as it was again afterwards."""
    path = limited.layout.zonepath("web") / "root/etc/passwd"
    kept = path.read_text()
    yield path
    if path.is_symlink() or not path.is_file():
        path.unlink()
    path.write_text(kept)


@pytest.mark.attack("leaked descriptors and folders", "CVE-2024-21626")
def test_a_home_that_is_a_descriptor_of_the_entering_process_is_not_entered(
    limited: Instance, accounts: Path
) -> None:
    """CVE-2024-21626: a working folder /proc/self/fd/N leads to a folder of the host that leaked."""
    rows = [f"u{fd}:x:{fd}:{fd}::/proc/self/fd/{fd}:/bin/sh\n" for fd in range(3, 7)]
    accounts.write_text(accounts.read_text() + "".join(rows) + "up:x:9:9::/proc/1/cwd/../../..:/bin/sh\n")
    for user in ("u3", "u4", "u5", "u6", "up"):
        where = limited.run("login", "-l", user, "web", "--", "sh", "-c", "pwd -P; ls -d ../../usr").stdout
        assert where.splitlines() == ["/", "../../usr"]


WRAPPED = ("4294967295:4294967295", "-1:-1", "65536:0", "0:65536", "4294967296:0", "0x0:0", "+0:0")


@pytest.mark.parametrize("user", WRAPPED)
@pytest.mark.attack("users that are not what they seem", "CVE-2024-40635", "CVE-2026-30892")
def test_ids_that_wrap_around_or_are_not_the_zones_run_nothing(limited: Instance, user: str) -> None:
    """CVE-2024-40635: such an id is no change of ids to the kernel; what ran would be root of the host."""
    done = limited.run("login", "-l", user, "web", "--", "id", check=False)
    assert done.returncode in (2, 125)
    assert done.stdout == ""


@pytest.mark.attack("code and files of the zone used by the host", "CVE-2019-14271")
def test_hostile_account_files_neither_block_login_nor_give_ids_of_the_host(
    limited: Instance, accounts: Path
) -> None:
    for ids in ("4294967295:4294967295", "-1:0", "70000:0"):
        accounts.write_text(f"evil:x:{ids}::/:/bin/sh\n")
        done = limited.run("login", "-l", "evil", "web", "--", "id", check=False)
        assert (done.returncode, done.stdout) == (125, "")
    accounts.unlink()
    os.mkfifo(accounts)
    assert limited.run("login", "web", "--", "true", check=False, timeout=30).returncode == 125
    accounts.unlink()
    accounts.symlink_to("/proc/kmsg")
    assert limited.run("login", "web", "--", "true", check=False, timeout=30).returncode in (0, 125)


@pytest.mark.attack("overwriting the entering program", "CVE-2019-5736")
def test_a_script_for_the_entering_program_itself_does_not_get_to_write_it(limited: Instance) -> None:
    """CVE-2019-5736: the interpreter is /proc/self/exe, the host's Python; hold it open, reopen it to write."""
    python = Path(os.path.realpath("/usr/bin/python3"))
    before = hashlib.sha256(python.read_bytes()).hexdigest()
    limited.login("web", "sh", "-c", r"""
cat > /srv/evil <<'END'
#!/proc/self/exe
import os
held = os.open("/proc/self/exe", os.O_PATH)
os.set_inheritable(held, True)
code = '''
import os
for path in ("/proc/self/fd/%d", "/proc/self/fd/%d/../python3"):
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
        for attempt in range(50):
            try:
                os.write(os.open(path % HELD, flags), b"x")
                print("WROTE")
            except OSError as error:
                last = error.errno
print("tried", last)
'''.replace("HELD", str(held))
os.execv("/bin/sh", ["sh", "-c", "exec /usr/bin/python3 -c \"$1\"", "sh", code])
END
chmod 755 /srv/evil""")
    said = limited.login("web", "/srv/evil", check=False)
    assert "tried" in said
    assert "WROTE" not in said
    assert hashlib.sha256(python.read_bytes()).hexdigest() == before


WATCH = """
import threading
print("watching", flush=True)
got, refused = [], 0
me = os.getpid()
known = {int(name) for name in os.listdir("/proc") if name.isdigit()}
while not os.path.exists("/tmp/stop"):
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in known:
            continue
        try:
            exe = os.readlink("/proc/%s/exe" % name)
        except OSError as error:
            if error.errno == errno.EACCES and not refused:
                print("refused", flush=True)
            refused += error.errno == errno.EACCES
            exe = None
        if exe is None or "sleep" in exe:
            continue
        got.append([name, exe])
        for what in ("fd", "environ", "mem", "maps", "cwd", "root"):
            if not attempt(os.listdir if what == "fd" else os.readlink if what in ("cwd", "root")
                           else lambda path: open(path, "rb").close(), "/proc/%s/%s" % (name, what)):
                got.append([name, what])
        if not system(101, ctypes.c_long(0x4206), ctypes.c_long(int(name)), None, None):
            got.append([name, "traced"])
os.unlink("/tmp/stop")
answer([got, refused])
"""


@pytest.mark.attack("tracing the entering process", "CVE-2016-9962")
def test_an_entering_process_cannot_be_looked_into_or_traced(limited: Instance) -> None:
    """CVE-2016-9962: only once it has become the command of the zone's own it is the zone's to look into."""
    with limited.popen("login", "web", "--", "/usr/bin/python3", "-c", PRELUDE + WATCH) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "watching\n"

        output = watcher.stdout

        def was_there_in_time() -> bool:
            limited.login("web", "/usr/bin/sleep", "0.05")
            return bool(select.select([output], [], [], 0)[0])

        until(was_there_in_time, "the watcher's look at an entering process")
        for _ in range(5):
            limited.login("web", "/usr/bin/sleep", "0.05")
        limited.run("login", "web", "--", "/usr/bin/sleep", "0", "0")
        limited.login("web", "/usr/bin/touch", "/tmp/stop")
        text = watcher.stdout.read().removeprefix("refused\n")
    got, refused = json.loads(text)
    programs = {exe for _pid, exe in got if exe.startswith("/")}
    assert not [item for item in got if "python" in item[1]], got
    assert programs <= {"/usr/bin/touch", "/usr/bin/coreutils"}, got
    assert refused > 0


@pytest.mark.attack("tracing the entering process", "CVE-2016-9962")
def test_a_parked_process_1_is_not_in_reach_of_a_mounted_zone(installed: Instance) -> None:
    """A zone mounted for maintenance has the parked process as process 1, with its channel to the manager."""
    if installed.state("web") == "running":
        installed.run("halt", "web")
    installed.run("mount", "web")
    try:
        program = """
answer([attempt(os.listdir, "/proc/1/fd"), attempt(os.readlink, "/proc/1/exe"), attempt(os.readlink, "/proc/1/root"),
        attempt(lambda: open("/proc/1/mem", "rb")), attempt(lambda: open("/proc/1/environ", "rb").read()),
        system(101, ctypes.c_long(16), ctypes.c_long(1), None, None), system(438, ctypes.c_long(0), 0, 0),
        open("/proc/1/cmdline").read().strip(chr(0))])
"""
        *errors, title = ask(installed, program)
        assert all(errors), errors
        assert "/" not in title
    finally:
        installed.run("unmount", "web")
