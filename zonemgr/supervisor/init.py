"""What process 1 of a zone becomes: asked of the brand, checked, and put into the message for the parked process.

In the worker; ``stub`` and ``reaper`` are the other side.  A brand that cannot say it breaks only its own zones.
"""

from __future__ import annotations

from typing import Any

from zonemgr.brandkit import contract, layers, loader
from zonemgr.brandkit.base import Brand, ZoneInfo
from zonemgr.errors import BrandError, ZoneError
from zonemgr.linux import labels, notify
from zonemgr.linux.enter import DEFAULT_PATH
from zonemgr.model.brandspec import InitProgram
from zonemgr.store.instance import Instance


def program_of(brand: Brand, zone: ZoneInfo) -> InitProgram:
    """What the brand wants to run in this zone.  Raises ZoneError."""
    try:
        layers.show(zone)
        program = brand.init_program(zone)
    except ZoneError:
        raise
    except Exception as error:
        raise BrandError(
            "brand '{brand}' init_program: {why}", brand=brand.name, why=loader.one_line(error)
        ) from error
    why = contract.init_fault(program)
    if why:
        raise BrandError("brand '{brand}' init_program: {why}", brand=brand.name, why=why)
    return program


def boot_message(program: InitProgram, instance: Instance, uuid: str) -> dict[str, Any]:
    """The order to become this program."""
    environment = {
        "PATH": DEFAULT_PATH,
        "TERM": "linux",
        "container": "zonemgr",
        "container_uuid": uuid,
        "container_ttys": "",
        **({"NOTIFY_SOCKET": f"/run/host/{notify.NAME}"} if instance.notifies else {}),
        **program.environment,
    }
    return {
        "op": "boot",
        "init": program.path,
        "candidates": _candidates(program.path, environment["PATH"]),
        "arguments": [program.path, *program.arguments],
        "environment": environment,
        "terminal": program.terminal,
        "reaped": program.reaped,
        "folder": program.folder,
        "uid": program.uid,
        "gid": program.gid,
        "groups": list(program.groups),
        "capabilities": list(instance.capabilities),
        "no_new_privs": instance.no_new_privs,
        "personality": instance.personality,
        "rlimits": list(instance.rlimits),
        "label": instance.label,
        "label_module": str(labels.active() or "") if instance.label else "",
    }


def _candidates(name: str, path: str) -> list[str]:
    if "/" in name:
        return [name]
    return [f"{folder}/{name}" for folder in path.split(":") if folder.startswith("/")]
