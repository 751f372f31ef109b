"""Audit records: their text, and that a host without audit is no error."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from zonemgr.linux import audit

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_a_record_names_zone_operation_caller_and_result() -> None:
    text = audit._text("web", "reboot", False, 12, 0)
    assert text.startswith('virt=zonemgr op=start reason=reboot vm="web" caller-pid=12 caller-uid=0 exe="/')
    assert text.endswith(" res=failed")
    assert audit._text("web", "boot", True, None, None).endswith(" res=success")


@pytest.mark.parametrize("zonename", ['a" res=success vm="b', "a b", "a\nb", "zöne"])
def test_a_name_cannot_forge_fields(zonename: str) -> None:
    assert f" vm={zonename.encode().hex().upper()} " in audit._text(zonename, "boot", True, 1, 0)


def test_a_host_without_audit_is_no_error_and_no_fd_is_left() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    assert audit.record("web", "boot", True) is None
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def audit_log() -> Iterator[socket.socket]:
    """The multicast group on which the kernel repeats every record."""
    try:
        log = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 9)
        log.bind((0, 1))
    except OSError as error:
        pytest.skip(f"this kernel has no audit: {error.strerror}")
    log.settimeout(10)
    with log:
        if not _audit_is_on():
            pytest.skip("audit is off on this host")
        yield log


def _audit_is_on() -> bool:
    """AUDIT_GET answers with an acknowledgement or struct audit_status (mask, enabled, ...), in either order."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 9) as channel:
        channel.settimeout(10)
        channel.sendto(struct.pack("=IHHII", 16, 1000, 1, 1, 0), (0, 0))
        while True:
            answer = channel.recv(4096)
            if struct.unpack_from("=IH", answer)[1] == 1000:
                return bool(struct.unpack_from("=II", answer, 16)[1])


@as_root
def test_a_record_reaches_the_log(audit_log: socket.socket) -> None:
    name = f"zone{os.getpid()}"
    assert audit.record(name, "boot", True) is None
    while f'vm="{name}"'.encode() not in audit_log.recv(16384):
        pass
