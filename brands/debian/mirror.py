"""Where packages come from unless the operator says: the host's own apt is asked, nothing is known by heart."""

from __future__ import annotations

import subprocess
from pathlib import Path

from zonemgr.brandkit import NotCompleted

HINT = "name one with -m MIRROR"


def own_suite() -> str:
    """The code name of the host's own release.  Raises NotCompleted on a host that has none."""
    for line in Path("/etc/os-release").read_text(errors="replace").splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME" and value.strip('"'):
            return value.strip('"')
    raise NotCompleted("this host has no suite of its own: name one with -s SUITE")


def mirror_of(suite: str) -> str:
    """The mirror that the host's apt has for this suite, else the one it has for its own suite."""
    format_ = "$(REPO_URI) $(RELEASE) $(CODENAME) $(SUITE) $(COMPONENT)"
    rows = [
        line.split() for line in _ask("apt-get", "indextargets", "--format", format_, "Identifier: Packages")
    ]
    usable = [row for row in rows if len(row) > 2 and row[0].startswith(("http://", "https://", "file:/"))]
    for wanted in (suite, own_suite()):
        for url, *names in usable:
            if wanted in names[:-1] and names[-1] == "main":
                return url
    raise NotCompleted("the host's apt has no mirror for {suite}: {hint}", suite=suite, hint=HINT)


def proxy_environment() -> dict[str, str]:
    """The host's apt proxy, as variables that downloading programs understand."""
    environment = {}
    for scheme in ("http", "https"):
        lines = _ask("apt-config", "shell", "proxy", f"Acquire::{scheme}::Proxy")
        value = next((line.partition("=")[2].strip("'") for line in lines if line.startswith("proxy=")), "")
        if value and value != "DIRECT":
            environment[f"{scheme}_proxy"] = value
    return environment


def _ask(*command: str) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise NotCompleted("the host has no {program}: {hint}", program=command[0], hint=HINT) from None
    return done.stdout.splitlines()
