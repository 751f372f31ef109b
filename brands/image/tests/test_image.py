"""Zones from archives, folders and images on the real kernel: installed, booted, shut down."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from brands.image import program
from brands.image.tests import build
from tests.kit.instance import Instance
from tests.kit.waiting import until
from zonemgr.brandkit import BrandError, NotCompleted
from zonemgr.brandkit.rootdir import RootDir

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup", "busybox")

LOOP = """trap 'echo ended > /srv/ended; exit 7' TERM
id -G > /srv/who; env > /srv/env; pwd > /srv/pwd; echo up > /srv/up
while :; do sleep 0.1; done"""


def _install(instance: Instance, source: Path, *options: str) -> Path:
    instance.configured("web", "-b", "image")
    instance.run("install", "web", *options, str(source))
    return instance.layout.zonepath("web") / "root"


def _up(root: Path) -> None:
    until(lambda: (root / "srv/up").exists(), "the application")


def _app(**config: Any) -> build.Layout:
    own = [build.folder("srv", mode=0o777)]
    return build.image([build.busybox(), own], {"Entrypoint": ["sh", "-c"], "Cmd": [LOOP], **config})


@pytest.mark.parametrize("kind", ["", "gz", "xz", "zst"])
def test_an_archive_of_a_root_is_installed(instance: Instance, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "root"
    source.write_bytes(build.pack(build.tar(build.busybox()), kind))
    root = _install(instance, source)
    assert (root / "bin/busybox").stat().st_mode & 0o111
    assert (root / "etc/hostname").read_text() == "web\n"
    assert (root / "etc/machine-id").read_text() == ""


def test_a_folder_with_an_init_boots_it(instance: Instance, tmp_path: Path) -> None:
    source = tmp_path / "root"
    with tarfile.open(fileobj=io.BytesIO(build.tar(build.busybox()))) as archive:
        archive.extractall(source)
    _install(instance, source)
    instance.run("boot", "web")
    assert "init" in instance.login("web", "cat", "/proc/1/cmdline")
    instance.run("shutdown", "web")
    assert instance.state("web") == "installed"


def test_an_application_runs_as_its_image_says(instance: Instance, tmp_path: Path) -> None:
    config = {"User": "app", "Env": ["COLOUR=light blue", "PATH=/bin"], "WorkingDir": "/srv/made"}
    root = _install(instance, _app(**config).write(tmp_path / "layout"))
    instance.run("boot", "web")
    _up(root)
    assert sorted((root / "srv/who").read_text().split()) == ["1000", "44"]
    environment = (root / "srv/env").read_text().splitlines()
    assert {"COLOUR=light blue", "PATH=/bin", "HOME=/home/app", "container=zonemgr"} <= set(environment)
    assert (root / "srv/pwd").read_text() == "/srv/made\n"
    assert instance.login("web", "cat", "/proc/1/comm") == "init\n"
    instance.run("shutdown", "web")
    assert (root / "srv/ended").read_text() == "ended\n"
    assert instance.state("web") == "installed"


def test_a_compressed_archive_of_an_image_with_another_stop_signal(
    instance: Instance, tmp_path: Path
) -> None:
    layout = _app(Cmd=[LOOP.replace("TERM", "USR1")], StopSignal="USR1")
    root = _install(instance, layout.archive(tmp_path / "image.tar.xz", "xz"))
    instance.run("boot", "web")
    _up(root)
    instance.run("shutdown", "web")
    assert (root / "srv/ended").exists()


def test_the_end_of_the_application_is_the_end_of_the_zone(instance: Instance, tmp_path: Path) -> None:
    layout = build.image([build.busybox()], {"Entrypoint": ["/bin/sh", "-c", "sleep 60 & exit 3"]})
    _install(instance, layout.write(tmp_path / "layout"))
    instance.run("boot", "web", check=False)
    until(lambda: instance.state("web") == "installed", "the halt")
    events = (instance.layout.run / "events.jsonl").read_text()
    assert "exited with status 3" in events


def test_an_application_that_is_missing_says_so(instance: Instance, tmp_path: Path) -> None:
    layout = build.image([build.busybox()], {"Entrypoint": ["nowhere"]})
    _install(instance, layout.write(tmp_path / "layout"))
    done = instance.run("boot", "web", check=False)
    assert done.returncode == 1
    assert "nowhere: No such file or directory" in done.stderr
    assert instance.state("web") == "installed"


@pytest.mark.requires("skopeo")
def test_what_skopeo_knows_is_fetched_and_run(instance: Instance, tmp_path: Path) -> None:
    """The way of a registry's image, from an archive as docker saves it, named from the caller's folder."""
    layout = _app().write(tmp_path / "layout")
    there = f"docker-archive:{tmp_path}/saved.tar:app:1"
    subprocess.run(["skopeo", "copy", "--quiet", f"oci:{layout}", there], check=True)
    instance.configured("web", "-b", "image")
    words = [*instance.command, "install", "web", "docker-archive:saved.tar"]
    subprocess.run(words, cwd=tmp_path, env=instance.env, check=True, capture_output=True)
    zonepath = instance.layout.zonepath("web")
    assert sorted(path.name for path in zonepath.iterdir()) == ["root"]
    instance.run("boot", "web")
    _up(zonepath / "root")
    instance.run("shutdown", "web")
    assert (zonepath / "root/srv/ended").read_text() == "ended\n"


@pytest.mark.requires("skopeo")
def test_what_skopeo_does_not_find_leaves_the_zone_as_it_was(instance: Instance, tmp_path: Path) -> None:
    instance.configured("web", "-b", "image")
    done = instance.run("install", "web", f"docker-archive:{tmp_path}/nothing.tar", check=1)
    assert "skopeo could not fetch" in done.stderr and "no such file" in done.stderr
    assert instance.state("web") == "configured"
    assert not instance.layout.zonepath("web").exists()


def test_a_hostile_archive_leaves_the_zone_as_it_was(instance: Instance, tmp_path: Path) -> None:
    source = tmp_path / "root.tar"
    source.write_bytes(build.tar([*build.busybox(), build.entry("../../../../etc/zonemgr-test", "x")]))
    instance.configured("web", "-b", "image")
    done = instance.run("install", "web", str(source), check=1)
    assert "points outside of the root" in done.stderr
    assert instance.state("web") == "configured"
    assert not instance.layout.zonepath("web").exists()
    assert not Path("/etc/zonemgr-test").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [((), "needs one SOURCE"), (("-x", "y"), "unknown option"), (("/nowhere",), "docker://")],
)
def test_wrong_arguments_are_explained(instance: Instance, words: tuple[str, ...], text: str) -> None:
    instance.configured("web", "-b", "image")
    assert text in instance.run("install", "web", *words, check=2).stderr


# -- what is run ------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    with RootDir.make(str(folder)) as made:
        made.write("/etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:7:8::/home/app:/bin/sh\n")
        made.write("/etc/group", "root:x:0:\nstaff:x:50:\n")
        made.write("/lib/systemd/systemd", "", 0o755)
    return folder


def _decide(root: Path, config: dict[str, Any], wanted: str = "", init: str = "/lib/systemd/systemd") -> Any:
    with RootDir(str(root)) as made:
        if init:
            made.link("/sbin/init", init)
        return program.from_config(made, config, wanted)


@pytest.mark.parametrize(
    ("config", "wanted", "path", "reaped"),
    [
        ({"Entrypoint": ["/app", "x"]}, "", "/app", True),
        ({"Entrypoint": ["/app"], "Cmd": ["y"]}, "", "/app", True),
        ({"Cmd": ["nginx"]}, "", "nginx", True),
        ({"Cmd": ["/bin/bash"]}, "", "/sbin/init", False),
        ({}, "", "/sbin/init", False),
        ({"Cmd": ["/bin/bash"]}, "app", "/bin/bash", True),
        ({"Entrypoint": ["/app"]}, "init", "/sbin/init", False),
        ({"Cmd": ["/sbin/init"]}, "", "/sbin/init", False),
        ({"Entrypoint": ["./run"], "WorkingDir": "/srv"}, "", "/srv/run", True),
    ],
)
def test_what_an_image_runs(root: Path, config: dict[str, Any], wanted: str, path: str, reaped: bool) -> None:
    found = _decide(root, config, wanted)
    assert (found.path, found.reaped) == (path, reaped)
    assert reaped or found.shutdown_signal == "SIGRTMIN+3"


def test_a_shell_is_run_where_there_is_no_init(root: Path) -> None:
    (root / "lib/systemd/systemd").unlink()
    found = _decide(root, {"Cmd": ["/bin/sh"]}, init="")
    assert (found.path, found.reaped) == ("/bin/sh", True)


@pytest.mark.parametrize(
    ("user", "ids"), [("app", (7, 8)), ("7", (7, 8)), ("app:staff", (7, 50)), ("9:9", (9, 9)), ("", (0, 0))]
)
def test_users_are_those_of_the_image(root: Path, user: str, ids: tuple[int, int]) -> None:
    found = _decide(root, {"Entrypoint": ["/app"], "User": user})
    assert (found.uid, found.gid) == ids


@pytest.mark.parametrize("user", ["-1", "nobody-here", "4294967296:0", "0x0:0", "app:nogroup"])
def test_impossible_users_are_refused(root: Path, user: str) -> None:
    from zonemgr.errors import ZoneError

    with pytest.raises(ZoneError):
        _decide(root, {"Entrypoint": ["/app"], "User": user})


@pytest.mark.parametrize(
    ("signal", "name"),
    [("SIGQUIT", "SIGQUIT"), ("QUIT", "SIGQUIT"), ("3", "SIGQUIT"), (None, "SIGTERM"), ("37", "SIGRTMIN+3")],
)
def test_stop_signals_in_every_spelling(root: Path, signal: str | None, name: str) -> None:
    assert _decide(root, {"Entrypoint": ["/app"], "StopSignal": signal}).shutdown_signal == name


@pytest.mark.parametrize(
    "config",
    [
        *({"StopSignal": signal} for signal in ("SIGNOTHING", "0", "32", "65", "1" * 5000)),
        {"WorkingDir": "../x"},
        {"Env": "x"},
        {"Entrypoint": [1]},
    ],
)
def test_impossible_configurations_are_refused(root: Path, config: dict[str, Any]) -> None:
    with pytest.raises(NotCompleted):
        _decide(root, {"Entrypoint": ["/app"], **config})


def test_the_record_comes_back_as_it_was_written(root: Path) -> None:
    found = _decide(root, {"Entrypoint": ["/app", "a b"], "Env": ["A=1\n2"], "User": "app"})
    with RootDir(str(root)) as made:
        program.write(made, found, "here")
        assert program.read(made) == found


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 1, "program": {"path": 3, "odd": 1}}', "x" * 200_000]
)
def test_a_damaged_record_breaks_only_the_boot(root: Path, text: str) -> None:
    (root / ".zonemgr-image.json").write_text(text)
    with RootDir(str(root)) as made, pytest.raises((BrandError, OSError)):
        program.read(made)
