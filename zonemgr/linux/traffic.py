"""How packets would find their way: the host's forwarding and its way out, what listens in a zone, old filters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from zonemgr.linux import process

_LISTENS: Final = {"tcp": "0A", "udp": "07"}  # states in /proc/net
_LEGACY: Final = {False: "iptables-legacy", True: "ip6tables-legacy"}
_DEFAULT6: Final = "0" * 32


def forwards(*, v6: bool, link: str = "all") -> bool:
    """Whether the host passes on packets that come in by a link."""
    family = "ipv6" if v6 else "ipv4"
    try:
        return Path(f"/proc/sys/net/{family}/conf/{link}/forwarding").read_text().strip() == "1"
    except OSError:
        return False


def bridges_filter6() -> bool:
    """Whether IPv6 frames pass the host's packet filter on their way through bridges (br_netfilter; Docker loads it).

    What has been translated back to ::1 there, the kernel takes for something that came so over the wire, and drops.
    """
    try:
        return Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables").read_text().strip() != "0"
    except OSError:
        return False


def uplink(*, v6: bool) -> str | None:
    """The link of the default route."""
    name = "/proc/net/ipv6_route" if v6 else "/proc/net/route"
    try:
        rows = [line.split() for line in Path(name).read_text().splitlines()]
    except OSError:
        return None
    if v6:
        found = (row[-1] for row in rows if row[0] == _DEFAULT6 and row[1] == "00" and row[-1] != "lo")
    else:
        found = (row[0] for row in rows[1:] if row[1] == "00000000" and row[7] == "00000000")
    return next(found, None)


def listens(pid: int, protocol: str, port: int) -> bool:
    """Whether a socket waits on the port in the network namespace of a process."""
    for name in (protocol, f"{protocol}6"):
        try:
            text = Path(f"/proc/{pid}/net/{name}").read_text()
        except OSError:
            continue
        for row in (line.split() for line in text.splitlines()[1:]):
            if row[3] == _LISTENS[protocol] and int(row[1].rpartition(":")[2], 16) == port:
                return True
    return False


def legacy_forward(*, v6: bool) -> list[str]:
    """The FORWARD chain of the old iptables, which nft does not show; empty where it is not in use."""
    names = Path("/proc/net/ip6_tables_names" if v6 else "/proc/net/ip_tables_names")
    try:
        if "filter" not in names.read_text().split():
            return []
    except OSError:
        return []
    places = (f"{folder}/{_LEGACY[v6]}" for folder in ("/usr/sbin", "/sbin"))
    program = next((place for place in places if os.access(place, os.X_OK)), None)
    if program is None:
        return ["(rules of the old iptables are loaded, and there is no iptables-legacy to show them)"]
    output_fd = os.memfd_create("rules", os.MFD_CLOEXEC)
    try:
        quiet = [(os.POSIX_SPAWN_DUP2, output_fd, 1), (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]
        pid = os.posix_spawn(program, [program, "-S", "FORWARD"], {"PATH": "/usr/sbin:/sbin"}, file_actions=quiet)
        if process.exit_status(os.waitpid(pid, 0)[1]):
            return []
        return os.pread(output_fd, 1 << 20, 0).decode(errors="replace").splitlines()
    finally:
        os.close(output_fd)
