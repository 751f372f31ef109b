"""The debian brand: a root of its own by debootstrap, with systemd as process 1.

Any suite of Debian or Ubuntu that debootstrap knows.  Nothing of a new root is run with the host's privilege, and
debootstrap itself is not either: both of its stages run in a user namespace with the zone's ids
(``zonemgr.brandkit.sandbox``).  By experiment that works as it is, given a /dev made ready beforehand.  To run the
second stage in the zone instead would need the zone booted, and its init is what the second stage installs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from zonemgr.brandkit import Brand, BrandError, NotCompleted, UsageError, ZoneInfo

USAGE = "usage: zonemgr install NAME [-s SUITE] [-m MIRROR] [-p PACKAGE,...]"


class Debian(Brand):
    """See the file's docstring; README.md beside it is for administrators."""

    name = "debian"
    summary = "Debian or Ubuntu with a root of its own (debootstrap, systemd)"

    init = "/sbin/init"
    init_terminal = False  # systemd's getty takes the console
    init_notifies = True
    login_command = ("/bin/login", "-f", "{user}")  # PAM: a session, its environment and limits
    shutdown_command = ()
    shutdown_signal = "SIGRTMIN+3"
    install_deadline_s = 2 * 3600

    verify_only_looks = True

    def verify(self, zone: ZoneInfo, command: str) -> None:
        """Only installing needs something of the host."""
        if command == "install" and shutil.which("debootstrap") is None:
            raise BrandError("there is no debootstrap: install the package debootstrap on the host")

    def install(self, zone: ZoneInfo, arguments: Sequence[str]) -> None:
        """Make the root.  The arguments are those of USAGE."""
        from zonemgr.brandkit.rootdir import RootDir

        from . import (  # not at the top: the brand is loaded for every transition
            bootstrap,
            mirror,
            personality,
        )

        suite, url, packages = _options(arguments)
        suite = suite or mirror.own_suite()
        url = url or mirror.mirror_of(suite)
        if os.path.lexists(zone.root):
            raise BrandError("{root} exists already", root=zone.root)
        try:
            RootDir.make(zone.root).close()
            bootstrap.bootstrap(zone, bootstrap.Wish(suite, url, packages))
            with RootDir(zone.root) as root:
                personality.finish(root, zone.config.hostname or zone.zonename)
        except OSError as error:
            path = error.filename if isinstance(error.filename, str) else zone.root
            raise NotCompleted("{path}: {why}", path=path, why=error.strerror or error) from error

    def unconfigure(self, zone: ZoneInfo) -> None:
        """A copy of a zone is another machine: the first boot makes a machine id, sshd's packages its keys."""
        from zonemgr.brandkit.personal import forget_identity
        from zonemgr.brandkit.rootdir import RootDir

        with RootDir(zone.root) as root:
            forget_identity(root)


def _options(arguments: Sequence[str]) -> tuple[str, str, tuple[str, ...]]:
    """(suite, mirror, packages).  Raises UsageError."""
    import getopt
    import re

    try:
        options, operands = getopt.getopt(list(arguments), "s:m:p:")
    except getopt.GetoptError as error:
        raise UsageError("brand 'debian': {why}; {usage}", why=error, usage=USAGE) from error
    if operands:
        raise UsageError("brand 'debian': unexpected '{word}'; {usage}", word=operands[0], usage=USAGE)
    found = dict(options)
    packages = tuple(word for flag, text in options if flag == "-p" for word in text.split(",") if word)
    for word in (*packages, *([found["-s"]] if "-s" in found else [])):
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]*", word):
            raise UsageError(
                "brand 'debian': '{word}' is no suite or package; {usage}", word=word, usage=USAGE
            )
    url = found.get("-m", "")
    if url and not url.startswith(("http://", "https://", "file:/")):
        raise UsageError("brand 'debian': a mirror is an http, https or file URL, not '{url}'", url=url)
    return found.get("-s", ""), url, packages
