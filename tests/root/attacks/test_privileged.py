"""A zone without a user namespace: its root is the host's by number, and still has no way to the host."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.instance import Instance
from tests.kit.waiting import until
from tests.root.attacks.conftest import one_installed
from tests.root.attacks.inside import ask
from zonemgr.store import instance as instances

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")

# Runs as whatever entered the zone: holds its executable, becomes another program, and reopens it to write.
EVIL = r"""
cat > /srv/evil <<'END'
#!/proc/self/exe
import os
held = os.open("/proc/self/exe", os.O_PATH)
os.set_inheritable(held, True)
code = '''
import os
print("held", os.readlink("/proc/self/fd/%d"))
for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_APPEND):
    for attempt in range(50):
        try:
            os.write(os.open("/proc/self/fd/%d", flags), b"x")
            print("WROTE")
        except OSError as error:
            last = error.errno
print("tried", last)
'''.replace("%d", str(held))
os.execv("/bin/sh", ["sh", "-c", "exec /usr/bin/python3 -c \"$1\"", "sh", code])
END
chmod 755 /srv/evil
"""


@pytest.fixture(scope="module")
def powerful() -> Iterator[Instance]:
    """A privileged zone, booted."""
    with one_installed() as instance:
        instance.run("config", "web", "set privileged=true")
        instance.run("boot", "web")
        yield instance


@pytest.mark.attack("overwriting the entering program", "CVE-2019-5736")
def test_what_enters_is_a_copy_that_nobody_can_write_to(powerful: Instance) -> None:
    python = Path(os.path.realpath("/usr/bin/python3"))
    before = hashlib.sha256(python.read_bytes()).hexdigest()
    powerful.login("web", "sh", "-c", EVIL)
    said = powerful.login("web", "/srv/evil", check=False)
    assert "held /memfd:zonemgr (deleted)" in said
    assert "tried" in said
    assert "WROTE" not in said
    assert hashlib.sha256(python.read_bytes()).hexdigest() == before


@pytest.mark.attack("unsharing, mounting and remounting", "CVE-2022-0492")
def test_no_power_over_the_host_is_left_to_its_root(powerful: Instance) -> None:
    program = """
os.makedirs("/tmp/here", exist_ok=True)
answer({
    "remount": mount(None, "/usr", None, REMOUNT | BIND),
    "unmount": call("umount2", "/usr", 2),
    "unmask": call("umount2", "/proc/keys", 2),
    "proc": mount("none", "/tmp/here", "proc"),
    "groups": mount("none", "/tmp/here", "cgroup", 0, "memory"),
    "core pattern": attempt(write, "/proc/sys/kernel/core_pattern", "|/tmp/x"),
    "sysrq": attempt(write, "/proc/sys/kernel/sysrq", "1"),
    "into the host's mounts": system(308, os.open("/proc/self/ns/mnt", os.O_RDONLY), NEWNS),
    "modules": system(175, 0, 0, 0),
    "files by number": system(304, ctypes.c_long(-100), 0, 0),
    "clock": system(227, 0, 0),
    "host name": call("sethostname", b"pwned", 5),
    "/usr": attempt(write, "/usr/bin/planted", "x"),
})
"""
    seen = ask(powerful, program)
    assert all(seen.values()), seen


@pytest.mark.attack("devices of the host")
def test_devices_that_its_root_makes_do_not_open(powerful: Instance) -> None:
    disk = next(
        path.stat().st_rdev
        for path in sorted(Path("/dev").iterdir())
        if path.exists() and stat.S_ISBLK(path.stat().st_mode)
    )
    program = f"""
def tried(name, kind, device):
    path = "/dev/shm/" + name
    return attempt(os.mknod, path, kind | 0o600, device) or attempt(lambda: os.close(os.open(path, os.O_RDWR)))
answer([tried("disk", stat.S_IFBLK, {disk}), tried("mem", stat.S_IFCHR, os.makedev(1, 1)),
        attempt(os.mknod, "/dev/disk", stat.S_IFBLK | 0o600, {disk})])
"""
    assert ask(powerful, program) == ["EPERM"] * 3


@pytest.mark.attack("tracing the entering process", "CVE-2016-9962")
def test_processes_on_their_way_in_have_more_capabilities_than_may_be_traced(powerful: Instance) -> None:
    """Without sys_ptrace nobody in the zone may look into a process that is not dumpable or can do more."""
    record = instances.read(powerful.layout, "web")
    assert record and not {"sys_admin", "sys_ptrace", "dac_read_search"} & set(record.capabilities)


@pytest.mark.attack("overwriting the entering program", "CVE-2019-5736")
def test_an_init_that_is_a_script_for_its_parent_gets_the_copy(powerful: Instance) -> None:
    """The parked process 1 is what runs it.  Last in this file: the zone is halted afterwards."""
    python = Path(os.path.realpath("/usr/bin/python3"))
    before = python.stat()
    powerful.login("web", "sh", "-c", EVIL)
    powerful.run("halt", "web")
    powerful.run("boot", "web", "--", "-i", "/srv/evil", check=False)
    path = powerful.layout.zone_log("web") / "console.log"
    until(lambda: "tried" in path.read_text(), "the end of its attempts")
    log = path.read_text()
    powerful.run("halt", "web")
    assert "held /memfd:zonemgr (deleted)" in log
    assert "WROTE" not in log
    after = python.stat()
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (before.st_mtime_ns, before.st_size, before.st_ino)
