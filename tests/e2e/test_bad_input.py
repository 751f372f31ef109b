"""What can be given wrongly: one clear line each, an exit status by the contract, nothing lost, nothing half-made."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.brands import Traced
from tests.kit.instance import Instance
from tests.kit.waiting import until

pytestmark = pytest.mark.requires("root", "mount", "net", "cgroup")


def refused(instance: Instance, *args: str, says: str, status: int = 1) -> None:
    """One line on standard error that has these words, no traceback, and the status."""
    done = instance.run(*args, check=status)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("zonemgr: ") and says in lines[0], done.stderr


def test_names(instance: Instance) -> None:
    for verb in (
        "boot",
        "halt",
        "ready",
        "reboot",
        "mount",
        "unmount",
        "shutdown",
        "install",
        "uninstall",
        "verify",
    ):
        words = [verb, "-F", "nosuch"] if verb == "uninstall" else [verb, "nosuch"]
        refused(instance, *words, says="nosuch: No such zone configured")
        refused(instance, *words[:-1], "global", says=f"{verb} operation is invalid for the global zone.")
    refused(instance, "create", "global", says="invalid for the global zone")
    for name in ("a/b", "../x", ".x", "-", "a b", "ä", "x" * 64, ""):
        refused(instance, "create", "--", name, says="zone name")
    refused(instance, "create", "SUNWweb", says="invalid for zones starting with SUNW")
    instance.run("create", "x" * 63)
    assert instance.states() == {"x" * 63: "configured"}
    refused(instance, "create", "x" * 63, says="Zone name already in use")


def test_usage(instance: Instance) -> None:
    for words in (["frob"], ["boot"], ["create"], ["boot", "--bogus", "x"], ["install"], ["halt", "-a", "x"]):
        refused(instance, *words, says="", status=2)


def test_a_reader_that_has_gone_is_no_error_of_ours(instance: Instance) -> None:
    """``zonemgr list | head -1``: no complaint, and the status of a program that SIGPIPE ends."""
    instance.configured("web", "--no-net")
    for words in (["list", "-c"], ["stat"], ["--help"], ["plan", "boot", "web"], ["--json", "plan", "boot", "web"]):
        reader, writer = os.pipe()
        os.close(reader)
        program = instance.popen(*words, stdout=writer)
        os.close(writer)
        _, said = program.communicate(timeout=60)
        assert (program.returncode, said) == (141, ""), words


def test_configuration(instance: Instance) -> None:
    instance.configured()
    before = instance.layout.config("web").read_bytes()
    for words, says in (
        (["set", "autobot=true"], "did you mean 'autoboot'"),
        (["set", "autoboot=maybe"], "autoboot"),
        (["set", "cpu-shares=-3"], "cpu-shares"),
        (["set", "limitpriv=default,nonsense"], "nonsense"),
        (["set", "limitpriv=default,!proc_setid"], "required privilege"),
        (["set", "limitpriv=default,sys_module"], "sys_module"),
        (["set", "hostid=xyz"], "hostid"),
        (["set", "brand=nativ"], "did you mean 'native'"),
        (["set", "zonepath=relative"], "zonepath"),
        (["add", "fs", "dir=data", "special=/tmp", "type=bind"], "data"),
        (["add", "net", "anet=zbr0", "address=300.1.1.1/24"], "300.1.1.1"),
        (["add", "capped-memory", "physical=lots"], "lots"),
        (["add", "capped-cpu", "ncpus=0"], "ncpus"),
        (["add", "frobs", "x=y"], "frobs"),
    ):
        done = instance.run("config", "web", *words, check=False)
        assert done.returncode in (1, 2), words
        assert len(done.stderr.splitlines()) == 1 and says in done.stderr, (words, done.stderr)
        assert instance.layout.config("web").read_bytes() == before, words
    instance.run("config", "web", "add", "fs", "dir=/data", "special=/srv", "type=bind", "options=ro")
    refused(
        instance,
        "config",
        "web",
        "add",
        "fs",
        "dir=/data",
        "special=/var",
        "type=bind",
        "options=ro",
        says="/data",
    )
    path = instance.layout.config("web")
    text = path.read_text()
    for bad, says in (
        ("this is no toml\n", "line 1"),
        (text + '\n[[fs]]\ndir = "/data"\nspecial = "/srv"\ntype = "bind"\noptions = ["ro"]\n', "/data"),
        (text + '\n[capped-memery]\nphysical = "1G"\n', "capped-memory"),
        (text.replace("autoboot = false", "autoboot = 7"), "autoboot"),
        ('zonename = "other"\n' + text.partition("\n")[2].replace('zonename = "web"\n', ""), "zonename"),
    ):
        path.write_text(bad)
        for words in (["verify", "web"], ["config", "web", "info"], ["install", "web"]):
            done = instance.run(*words, check=1)
            assert len(done.stderr.splitlines()) == 1, done.stderr
            assert str(path) in done.stderr and says in done.stderr, (says, done.stderr)
        assert instance.run("list", "-c").stdout.split() == ["global", "web"]
    path.write_text(text)
    instance.run("verify", "web")


def test_zonepaths(instance: Instance, tmp_path: Path) -> None:
    instance.configured()
    link = tmp_path / "link"
    (tmp_path / "real").mkdir()
    link.symlink_to(tmp_path / "real")
    instance.run("config", "web", "set", f"zonepath={link}/web")
    done = instance.run("install", "web", check=1)
    assert "Resolved path mismatch" in done.stderr
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    instance.run("config", "web", "set", f"zonepath={tmp_path}/open/web")
    done = instance.run("install", "web", check=1)
    assert "writable" in done.stderr
    assert instance.state() == "configured"
    assert list((tmp_path / "real").iterdir()) == list((tmp_path / "open").iterdir()) == []


def test_addresses_in_use(instance: Instance) -> None:
    instance.running("one")
    address = next(
        line for line in instance.layout.config("one").read_text().splitlines() if line.startswith("address")
    )
    instance.installed("two")
    path = instance.layout.config("two")
    text = path.read_text()
    old = next(line for line in text.splitlines() if line.startswith("address"))
    path.write_text(text.replace(old, address))
    done = instance.run("boot", "two", check=1)
    assert "in use" in done.stderr and "one" in done.stderr, done.stderr
    assert instance.states() == {"one": "running", "two": "installed"}


def test_links_and_bridges_that_are_missing(instance: Instance) -> None:
    instance.installed()
    path = instance.layout.config("web")
    text = path.read_text()
    path.write_text(text.replace(f'anet = "{instance.bridge}"', 'anet = "nobridge0"'))
    done = instance.run("boot", "web", check=1)
    assert "bridge 'nobridge0' does not exist" in done.stderr
    path.write_text(text.replace(f'anet = "{instance.bridge}"', 'physical = "nolink0"'))
    done = instance.run("boot", "web", check=1)
    assert "nolink0" in done.stderr
    assert instance.state() == "installed"
    path.write_text(text)
    instance.run("boot", "web")


def test_brands(instance: Instance) -> None:
    brand = Traced(instance)
    instance.configured("web", "-b", brand.name)
    file = brand.folder / "brand.py"
    text = file.read_text()
    for bad in (
        "raise RuntimeError('on import')\n",
        "def broken(:\n",
        "import no_such_module\n",
        "import sys; sys.exit(3)\n",
    ):
        file.write_text(bad)
        done = instance.run("install", "web", check=1)
        assert len(done.stderr.splitlines()) == 1 and str(file) in done.stderr, done.stderr
        assert any("broken" in line for line in instance.run("brands", check=False).stdout.splitlines())
        instance.configured("other")  # only its own zones are broken
        instance.run("delete", "-F", "other")
    file.write_text(text)
    instance.run("install", "web")
    file.write_text("raise RuntimeError('on import')\n")
    done = instance.run("boot", "web", check=1)
    assert len(done.stderr.splitlines()) == 1 and str(file) in done.stderr, done.stderr
    assert instance.state() == "installed"
    file.write_text(text)
    instance.run("boot", "web")
    file.write_text("raise RuntimeError('on import')\n")
    instance.run("halt", "web")
    assert instance.state() == "installed"
    assert instance.run("boot", "nosuch", "web", check=1).stderr.count("\n") == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_loses_nothing(instance: Instance, small_disk: Path) -> None:
    instance.configured()
    folder = instance.layout.etc / "zones"
    text = instance.layout.config("web").read_text()
    (small_disk / "web.toml").write_text(text)
    subprocess.run(["mount", "--bind", small_disk, folder], check=True)
    try:
        (folder / "ballast").write_bytes(b"")
        with (folder / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(b"x" * 4096)
        done = instance.run("config", "web", "set", "autoboot=true", check=1)
        assert len(done.stderr.splitlines()) == 1 and "No space left on device" in done.stderr
        assert (folder / "web.toml").read_text() == text
        assert sorted(os.listdir(folder)) == ["ballast", "web.toml"]
        refused(instance, "create", "other", says="No space left on device")
        assert sorted(os.listdir(folder)) == ["ballast", "web.toml"]
    finally:
        subprocess.run(["umount", folder], check=True)


def test_two_administrators(instance: Instance) -> None:
    """Edits at the same time all take effect, or are refused with a word."""
    instance.configured()
    names = [f"n{number}" for number in range(8)]
    editors = [
        instance.popen("config", "web", "add", "attr", f"name={name}", "type=string", "value=x")
        for name in names
    ]
    results = [(editor.communicate(timeout=60)[1], editor.returncode) for editor in editors]
    text = instance.layout.config("web").read_text()
    for name, (said, status) in zip(names, results, strict=True):
        assert (status == 0) == (f'"{name}"' in text), (name, said)
        assert status == 0 or len(said.splitlines()) == 1, said
    assert any(status == 0 for _, status in results)
    instance.run("verify", "web")


def test_an_interrupted_boot_goes_on_and_halt_from_elsewhere_cancels_it(instance: Instance) -> None:
    brand = Traced(instance)
    instance.installed("web", "-b", brand.name)
    with tempfile.TemporaryDirectory() as folder:
        fifo = os.path.join(folder, "fifo")
        os.mkfifo(fifo)
        brand.script({"pre installed ready": f"wait {fifo}"})
        caller = instance.popen("boot", "web")
        assert caller.stderr is not None
        assert "waiting" in caller.stderr.readline()
        caller.send_signal(signal.SIGINT)
        _, said = caller.communicate(timeout=30)
        assert caller.returncode == 130
        assert said == "zonemgr: zone 'web': interrupted: the boot goes on (zonemgr halt web cancels it)\n"
        Path(fifo).write_text("")
        until(lambda: instance.state() == "running", "the boot")
        instance.run("halt", "web")

        caller = instance.popen("boot", "web")
        assert caller.stderr is not None
        assert "waiting" in caller.stderr.readline()
        instance.run("halt", "web")
        _, said = caller.communicate(timeout=30)
        assert caller.returncode == 1
        assert "boot was cancelled by halt" in said
    brand.script()
    assert instance.state() == "installed"
    instance.run("boot", "web")
