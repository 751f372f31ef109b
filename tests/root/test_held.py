"""What a configuration takes away from a zone holds in the kernel: privileges, calls, devices, its own root."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.instance import Instance
from tests.kit.waiting import until
from tests.root.attacks.conftest import one_installed
from tests.root.attacks.inside import ask
from zonemgr.linux import libc
from zonemgr.store import instance as instances

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")

CONFIGURATION = """
limitpriv = "default,!net_access,!sys_nice"
seccomp = ["!ptrace", "keyctl"]
no-new-privs = true
file-mac-profile = "strict"
fs-allowed = ["-"]
[security-flags]
lower = "aslr"
[[device]]
match = "kms[g]"
"""


@pytest.fixture(scope="module")
def held() -> Iterator[Instance]:
    """A zone from which much is taken away, booted."""
    with one_installed() as instance:
        file = instance.layout.config("web")
        text = file.read_text()
        before, bracket, tables = text.partition("[[")
        file.write_text(before + CONFIGURATION + bracket + tables)
        instance.run("boot", "web")
        yield instance


# Init and whoever logs in are held alike.
FACTS = """
import re
def facts(pid):
    text = open("/proc/%s/status" % pid).read()
    return {name: re.search("^%s:\\\\s*(.*)$" % name, text, re.M)[1] for name in ("CapBnd", "NoNewPrivs", "Seccomp")}
answer([facts(1), facts("self")])
"""


def test_init_and_login_are_held_alike(held: Instance) -> None:
    init, login = ask(held, FACTS)
    assert init == login
    assert (init["NoNewPrivs"], init["Seccomp"]) == ("1", "2")
    assert not int(init["CapBnd"], 16) >> 23 & 1  # sys_nice


def test_calls_and_rights_that_were_taken_away_are_refused(held: Instance) -> None:
    program = """
answer({
    "inet": attempt(socket.socket, socket.AF_INET),
    "unix": attempt(socket.socket, socket.AF_UNIX),
    "ptrace": system(101, ctypes.c_long(0), 0, 0, 0),
    "keyctl": system(250, 0, ctypes.c_long(-3), 0),
    "no address randomisation": call("personality", ctypes.c_ulong(0x40000)),
    "tmpfs": mount("none", "/tmp", "tmpfs"),
    "bind": mount("/tmp", "/tmp", None, BIND),
})
"""
    seen = ask(held, program)
    assert [name for name, error in seen.items() if not error] == ["unix", "keyctl", "bind"]
    assert set(seen.values()) - {""} == {"EPERM"}


@pytest.mark.attack("stealing keys")
def test_keys_of_the_host_cannot_be_read_even_where_keyctl_is_let_through(held: Instance) -> None:
    secret, user_keyring, invalidate = b"the host's own", -4, 21
    key = libc.call("add_key", "user", "zonemgr-test", secret, len(secret), user_keyring)
    try:
        program = f"""
buffer = ctypes.create_string_buffer(100)
def keyctl(*arguments):
    return system(250, *arguments)
answer([keyctl(11, ctypes.c_long({key}), buffer, 100), keyctl(8, ctypes.c_long({key}), ctypes.c_long(-2)),
        keyctl(11, ctypes.c_long({key}), buffer, 100), keyctl(21, ctypes.c_long({key})), buffer.value.decode(),
        "zonemgr" in open("/proc/keys").read()])
"""
        *errors, read, listed = ask(held, program)
    finally:
        libc.call("keyctl", invalidate, key, 0, 0, 0)
    assert all(errors), errors
    assert (read, listed) == ("", False)


@pytest.mark.attack("devices of the host")
def test_a_device_that_is_not_allowed_does_not_open_whoever_made_its_node(held: Instance) -> None:
    """The host itself smuggles the nodes in: the kernel asks for the device, not for where its node came from."""
    instance = instances.read(held.layout, "web")
    assert instance and instance.init
    smuggled = Path(f"/proc/{instance.init.pid}/root/dev")
    disk = next(
        os.stat(path).st_rdev
        for path in sorted(Path("/dev").iterdir())
        if path.exists() and stat.S_ISBLK(path.stat().st_mode)
    )
    numbers = {"mem": (stat.S_IFCHR, os.makedev(1, 1)), "port": (stat.S_IFCHR, os.makedev(1, 4))}
    numbers["disk"] = (stat.S_IFBLK, disk)
    for name, (kind, device) in numbers.items():
        os.mknod(smuggled / name, kind | 0o666, device)
        os.chmod(smuggled / name, 0o666)
    try:
        program = """
def opens(name):
    return attempt(lambda: os.close(os.open("/dev/" + name, os.O_RDONLY | os.O_NONBLOCK)))
answer({name: opens(name) for name in ("mem", "port", "disk", "null", "zero", "tty", "ptmx", "kmsg")})
"""
        seen = ask(held, program)
    finally:
        for name in numbers:
            (smuggled / name).unlink()
    assert {seen[name] for name in numbers} == {"EPERM"}
    assert seen["null"] == seen["zero"] == seen["ptmx"] == ""
    assert seen["kmsg"] != "ENOENT"  # its node is there, by the pattern


@pytest.mark.attack("changing an immutable zone")
def test_nothing_of_a_strict_root_can_be_written_or_made_writable(held: Instance) -> None:
    program = """
def made(folder):
    return attempt(write, folder + "/planted", "x")
answer({
    "made": {folder: made(folder) for folder in ("/", "/etc", "/var", "/root", "/home", "/usr/local", "/srv")},
    "remount": [mount(None, point, None, REMOUNT | BIND) for point in ("/", "/usr/local")],
    "bound": [mount("/etc", "/tmp", None, BIND | REC), made("/tmp/"), call("umount2", "/tmp", 2)],
    "volatile": [made("/tmp"), made("/run")],
})
"""
    seen = ask(held, program)
    assert set(seen["made"].values()) == {"EROFS"}
    assert all(seen["remount"])
    assert seen["bound"] == ["", "EROFS", ""]
    assert seen["volatile"] == ["", ""]


@pytest.mark.attack("changing an immutable zone")
def test_the_trusted_path_writes_what_the_zone_cannot_and_is_out_of_its_sight(held: Instance) -> None:
    held.login("web", "sh", "-c", "echo '#!/bin/sh' > /tmp/trojan; chmod 755 /tmp/trojan")
    program = "echo mine > /etc/planted; readlink /proc/self/exe; /tmp/trojan"
    seen = held.run("login", "-T", "web", "--", "sh", "-c", program, check=126)
    assert seen.stdout.startswith("/usr/")  # a /proc of its own, that knows it
    held.run("login", "-U", "web", "--", "/tmp/trojan")
    assert held.login("web", "cat", "/etc/planted") == "mine\n"
    assert ask(held, 'answer(attempt(write, "/etc/planted", "x"))') == "EROFS"
    with held.popen("login", "-T", "web", "--", "sh", "-c", "echo here; sleep 1000") as session:
        assert session.stdout is not None
        assert session.stdout.readline() == "here\n"
        count = 'answer(["sleep" in open("/proc/%s/comm" % n).read() for n in os.listdir("/proc") if n.isdigit()])'
        assert not any(ask(held, count))
        session.kill()
    held.run("login", "-T", "web", "--", "rm", "/etc/planted")


def test_boot_w_makes_the_root_writable_until_the_next_boot(held: Instance) -> None:
    """Last in this file: it changes what the others look at.  The second boot is one that the zone asks for."""
    held.run("reboot", "web", "--", "-w")
    assert held.login("web", "sh", "-c", "echo x > /etc/planted; cat /etc/planted") == "x\n"
    before = instances.read(held.layout, "web")
    held.run("login", "web", "--", "/usr/local/sbin/reboot", check=False)

    def again() -> bool:
        now = instances.read(held.layout, "web")
        return bool(now and before and now.generation != before.generation and now.phase is instances.Phase.RUNNING)

    until(again, "the zone to be up again")
    assert ask(held, 'answer(attempt(write, "/etc/planted", "y"))') == "EROFS"
    held.run("halt", "web")
