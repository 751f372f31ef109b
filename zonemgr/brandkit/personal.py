"""The few files that make a root this machine's and no other's: host name, hosts, name servers, machine id, host keys.

For brands with a root of their own.  Everything is written through a ``RootDir``, since the root may be hostile.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from zonemgr.brandkit.rootdir import RootDir

_RESOLVERS: Final = (
    "/etc/resolv.conf",
    "/run/systemd/resolve/resolv.conf",
    "/run/NetworkManager/resolv.conf",
)
_LEASES: Final = ("/var/lib/dhcp", "/var/lib/dhcpcd", "/var/lib/NetworkManager", "/run/systemd/netif")


def hosts(hostname: str) -> str:
    """The content of /etc/hosts."""
    return f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 {hostname}\n"


def resolv_conf() -> str:
    """The host's name servers without those that only the host can reach."""
    for source in _RESOLVERS:
        lines = _resolver_lines(Path(source))
        if any(line.startswith("nameserver") for line in lines):
            return "".join(line + "\n" for line in lines)
    return "# The host has no name server that can be reached from here; add one: nameserver ADDRESS\n"


def _resolver_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in map(str.strip, lines) if _is_usable(line.split())]


def _is_usable(words: list[str]) -> bool:
    if words[:1] == ["nameserver"]:
        return len(words) == 2 and not words[1].startswith("127.") and words[1] != "::1"
    return words[:1] in (["search"], ["options"], ["domain"])


def name_root(root: RootDir, hostname: str) -> None:
    """Host name, hosts and name servers for a new root."""
    root.write("/etc/hostname", hostname + "\n")
    root.write("/etc/hosts", hosts(hostname))
    root.write("/etc/resolv.conf", resolv_conf())


def forget_identity(root: RootDir, *, machine_id: str = "") -> None:
    """What no two machines may share.  Host keys and leases go; the machine id becomes the given one, or empty: then
    the first boot makes one."""
    if root.status("/etc") is not None:
        root.write("/etc/machine-id", machine_id + "\n" if machine_id else "", 0o444)
    dbus = root.status("/var/lib/dbus/machine-id", follow=False)
    if dbus is not None and root.link_target("/var/lib/dbus/machine-id") is None:
        root.remove("/var/lib/dbus/machine-id")
    for name in root.names("/etc/ssh"):
        if name.startswith("ssh_host_") and "_key" in name:
            root.remove(f"/etc/ssh/{name}")
    root.remove("/var/lib/systemd/random-seed")
    root.remove("/var/lib/systemd/credential.secret")
    for folder in _LEASES:
        for name in root.names(folder):
            if "lease" in name:
                root.remove(f"{folder}/{name}")


def new_machine_id() -> str:
    """A random machine id."""
    return os.urandom(16).hex()
