"""Paths below a hostile root: what is planted there is refused, and nothing outside is ever touched. Needs
no privilege.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from zonemgr.errors import PlatformError
from zonemgr.linux import libc, paths, process


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text("secret")
    return folder


@pytest.fixture
def root(tmp_path: Path, outside: Path) -> Path:
    root = tmp_path / "root"
    for folder in ("usr/local", "etc", "var"):
        (root / folder).mkdir(parents=True)
    (root / "etc/file").touch()
    (root / "var/file").touch()
    (root / "out").symlink_to(outside)
    (root / "up").symlink_to("../outside")
    (root / "inner").symlink_to("usr")
    os.mkfifo(root / "var/fifo")
    return root


@pytest.fixture
def root_fd(root: Path) -> Iterator[int]:
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def _where(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


# -- open_beneath --------------------------------------------------------------------------------------------


def test_a_path_is_held_inside_the_root(root_fd: int, root: Path) -> None:
    for path in ("/usr", "usr", "/../usr", "../../../../usr", "/usr/../../usr"):
        assert _where(paths.open_beneath(root_fd, path, os.O_PATH)) == str(root / "usr")
    assert _where(paths.open_beneath(root_fd, "/", os.O_PATH)) == str(root)


def test_links_are_refused_or_resolved_inside(root_fd: int, root: Path) -> None:
    for path in ("/out", "/out/secret", "/up/secret", "/inner/local"):
        with pytest.raises(OSError) as failure:
            paths.open_beneath(root_fd, path, os.O_RDONLY)
        assert failure.value.errno == errno.ELOOP
        assert "openat2" in str(failure.value)
    assert _where(paths.open_beneath(root_fd, "/inner/local", os.O_PATH, no_symlinks=False)) == str(
        root / "usr/local"
    )
    for path in ("/out/secret", "/up/secret"):
        with pytest.raises(FileNotFoundError):
            paths.open_beneath(root_fd, path, os.O_RDONLY, no_symlinks=False)


def test_without_in_root_leaving_is_refused(root_fd: int) -> None:
    for path in ("../outside", "/usr"):
        with pytest.raises(OSError) as failure:
            paths.open_beneath(root_fd, path, os.O_PATH, in_root=False)
        assert failure.value.errno == errno.EXDEV


def test_magic_links_and_other_mounts_are_refused() -> None:
    proc_fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    slash_fd = os.open("/", os.O_PATH | os.O_DIRECTORY)
    with pytest.raises(OSError) as failure:
        paths.open_beneath(proc_fd, f"{os.getpid()}/root/etc", os.O_PATH, no_symlinks=False)
    assert failure.value.errno == errno.ELOOP
    with pytest.raises(OSError) as failure:
        paths.open_beneath(slash_fd, "/proc/version", os.O_RDONLY, no_xdev=True)
    assert failure.value.errno == errno.EXDEV
    os.close(proc_fd)
    os.close(slash_fd)


def test_a_name_with_a_nul_is_refused(root_fd: int) -> None:
    with pytest.raises(OSError, match="NUL") as failure:
        paths.open_beneath(root_fd, "/usr\0/../../etc", os.O_PATH)
    assert failure.value.errno == errno.EINVAL


def test_descriptors_close_on_exec(root_fd: int) -> None:
    descriptor = paths.open_beneath(root_fd, "/usr", os.O_PATH)
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


def test_file_system_types_are_told_apart() -> None:
    descriptor = os.open("/proc/self", os.O_PATH)
    assert paths.file_system_type(descriptor) == paths.PROC_MAGIC
    os.close(descriptor)


# -- check_mount_point ---------------------------------------------------------------------------------------


def _check(root_fd: int, directory: str) -> bool:
    return paths.check_mount_point(root_fd, directory, type="bind", special="/srv", display="/z/root")


def test_what_exists_is_usable_and_what_is_missing_must_be_made(root_fd: int) -> None:
    for directory in ("/usr", "/usr/local", "/etc/file", "/var/fifo"):
        assert _check(root_fd, directory)
    for directory in ("/new", "/new/deeper/still", "/usr/local/new"):
        assert not _check(root_fd, directory)


@pytest.mark.parametrize(
    ("directory", "text"),
    [
        ("", 'invalid mount directory, type: "bind", special: "/srv", dir: ""'),
        ("usr", 'invalid mount directory, type: "bind", special: "/srv", dir: "usr"'),
        ("/out", "/z/root/out is a symlink"),
        ("/out/secret", "/z/root/out is a symlink"),
        ("/up/new", "/z/root/up is a symlink"),
        ("/inner/local", "/z/root/inner is a symlink"),
        ("/etc/file/x", "/z/root/etc/file is not a directory"),
        ("/", "/z/root/ is not a canonical path"),
        ("/usr/", "/z/root/usr/ is not a canonical path"),
        ("//usr", "/z/root/ is not a canonical path"),
        ("/usr//local", "/z/root/usr/ is not a canonical path"),
        ("/./usr", "/z/root/. is not a canonical path"),
        ("/usr/../etc", "/z/root/usr/.. is not a canonical path"),
        ("/new/../../x", "/z/root/new/.. is not a canonical path"),
        ("/" + "a" * 5000, "/z/root/" + "a" * 5000 + " is too long"),
        ("/" + "a" * 300, "can't stat /z/root/" + "a" * 300 + ": File name too long"),
    ],
)
def test_a_bad_mount_point_is_refused_in_the_references_words(
    root_fd: int, directory: str, text: str
) -> None:
    with pytest.raises(PlatformError) as failure:
        _check(root_fd, directory)
    assert failure.value.text == (
        f"pathname {text}" if text.endswith("too long") and "stat" not in text else text
    )


# -- make_mount_point ----------------------------------------------------------------------------------------


def _make(root_fd: int, directory: str, **more: str) -> None:
    paths.make_mount_point(root_fd, directory, 0o711, display="/z/root", **more)  # type: ignore[arg-type]


def test_missing_steps_are_made_and_only_the_last_gets_the_mode(root_fd: int, root: Path) -> None:
    _make(root_fd, "/a/b/c")
    assert stat.S_IMODE((root / "a/b/c").stat().st_mode) == 0o711
    assert stat.S_IMODE((root / "a/b").stat().st_mode) == 0o755
    _make(root_fd, "/a/b/file", kind="file")
    assert (root / "a/b/file").is_file()


def test_what_exists_stays_as_it_is(root_fd: int, root: Path) -> None:
    (root / "usr").chmod(0o700)
    _make(root_fd, "/usr")
    _make(root_fd, "/etc/file")
    _make(root_fd, "/var/file", kind="file")
    assert stat.S_IMODE((root / "usr").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("directory", "text"),
    [
        ("/var/file", "/z/root/var/file is not in /etc"),
        ("/var/fifo", "/z/root/var/fifo is not a directory"),
        ("/out", "/z/root/out is not a directory"),
        ("/out/new", "/z/root/out is a symlink"),
        ("/up/new", "/z/root/up is a symlink"),
        ("/etc/file/new", "/z/root/etc/file is not a directory"),
        ("/a/../../outside/new", "/z/root/a/.. is not a canonical path"),
        ("/a//b", "/z/root/a/ is not a canonical path"),
    ],
)
def test_a_bad_folder_is_refused_and_nothing_outside_is_touched(
    root_fd: int, outside: Path, directory: str, text: str
) -> None:
    with pytest.raises(PlatformError) as failure:
        _make(root_fd, directory)
    assert failure.value.text == text
    assert os.listdir(outside) == ["secret"]


@pytest.mark.attack("races with who writes in a shared folder", "CVE-2021-30465", "CVE-2024-45310")
def test_a_folder_that_turns_into_a_link_meanwhile_leads_nowhere(
    root_fd: int, root: Path, outside: Path
) -> None:
    """A process of the zone exchanges a folder and a link to the host as fast as it can."""
    (root / "swap").mkdir()
    (root / "evil").symlink_to(outside)
    swapper = process.fork()
    if swapper == 0:
        try:
            exchange = Exchange(root_fd)
            while True:
                exchange()
        finally:
            os._exit(1)
    refused = made = 0
    end = time.monotonic() + 20
    try:
        while (made < 50 or refused < 50) and time.monotonic() < end:
            try:
                _make(root_fd, f"/swap/{made}/x")
                made += 1
            except PlatformError as error:
                assert error.text == "/z/root/swap is a symlink"
                refused += 1
    finally:
        os.kill(swapper, signal.SIGKILL)
        os.waitpid(swapper, 0)
    assert made and refused
    assert os.listdir(outside) == ["secret"]


class Exchange:
    """renameat2(RENAME_EXCHANGE) of "swap" and "evil"."""

    def __init__(self, root_fd: int) -> None:
        self._call = ctypes.CDLL(None).renameat2
        self._root_fd = root_fd

    def __call__(self) -> None:
        self._call(self._root_fd, b"swap", self._root_fd, b"evil", 2)


def test_both_machines_have_all_calls() -> None:
    for name, (x86_64, aarch64, prototype) in libc._SYSCALLS.items():
        assert prototype, name
        assert (x86_64 == aarch64) == (x86_64 >= 424), name  # from there on all machines share the numbers
