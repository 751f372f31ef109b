"""Users inside a zone: setuid programs work among them, and make nobody more than root of the zone."""

from __future__ import annotations

import pytest

from tests.kit.instance import Instance
from tests.root.attacks.inside import ask

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")

NOBODY = "65534"


def test_su_changes_to_a_user_of_the_zone(web: Instance) -> None:
    assert web.login("web", "su", "-s", "/bin/sh", "nobody", "-c", "id -u").strip() == NOBODY


def test_a_setuid_program_makes_root_of_the_zone(web: Instance) -> None:
    web.login("web", "sh", "-c", "cp /usr/bin/id /opt/as-root && chmod 4755 /opt/as-root")
    assert web.run("login", "-l", "nobody", "web", "--", "/opt/as-root", "-u").stdout == "0\n"
    assert web.run("login", "-l", "nobody", "web", "--", "id", "-u").stdout.strip() == NOBODY


def test_setuid_programs_of_the_host_are_the_zones_own(web: Instance) -> None:
    """su is set-user-id root of the zone, so that it asks for a password instead of failing to."""
    seen = ask(web, 'status = os.stat("/usr/bin/su"); answer([status.st_uid, bool(status.st_mode & stat.S_ISUID)])')
    assert seen == [0, True]


@pytest.mark.attack("set-user-id programs")
def test_a_plain_user_gains_nothing(web: Instance) -> None:
    program = """
os.makedirs("/tmp/nobody", exist_ok=True)
seen = {
    "shadow": attempt(lambda: open("/etc/shadow").read()),
    "root's home": attempt(os.listdir, "/root"),
    "signal to init": attempt(os.kill, 1, 15),
    "mount": mount("none", "/tmp/nobody", "tmpfs"),
    "umount": call("umount2", "/proc", 2),
    "setuid": attempt(os.setuid, 0),
    "chroot": attempt(os.chroot, "/tmp"),
    "hostname": call("sethostname", b"x", 1),
    "memory of init": attempt(lambda: open("/proc/1/mem", "rb").close()),
    "group": attempt(write, "/sys/fs/cgroup/cgroup.procs", str(os.getpid())),
    "console": attempt(lambda: open("/dev/console", "rb").close()),
}
libc.unshare(NEWUSER | NEWNS | NEWPID)
seen["remount, in namespaces of its own"] = mount(None, "/usr", None, REMOUNT | BIND)
seen["umount, in namespaces of its own"] = call("umount2", "/proc/keys", 2)
seen["shadow, in namespaces of its own"] = attempt(lambda: open("/etc/shadow").read())
if os.fork() == 0:
    seen["proc, in namespaces of its own"] = mount("proc", "/tmp/nobody", "proc")
    answer(seen)
    os._exit(0)
os.wait()
"""
    seen = ask(web, program, user="nobody")
    assert all(seen.values()), seen


@pytest.mark.attack("users that are not what they seem")
def test_sharing_a_uid_with_a_user_of_the_host_gives_nothing(web: Instance) -> None:
    """Each id of the zone is another one on the host: its processes count as nobody of the host's users."""
    map_lines = web.login("web", "cat", "/proc/self/uid_map").split()
    inside, outside, count = map(int, map_lines)
    assert inside == 0
    assert outside >= 524288 and outside % 65536 == 0
    assert count == 65536


def test_two_zones_have_no_id_in_common(web: Instance) -> None:
    web.run("create", "other")
    try:
        web.run("install", "other")
        web.run("boot", "other")
        bases = {web.login(name, "cat", "/proc/self/uid_map").split()[1] for name in ("web", "other")}
        assert len(bases) == 2
    finally:
        web.run("halt", "other", check=False)
        web.run("uninstall", "-F", "other", check=False)
        web.run("delete", "-F", "other", check=False)
