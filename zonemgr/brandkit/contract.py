"""What a brand may declare, checked before any of it runs: one row per attribute of :class:`Brand`, one rule for hooks.

Pure: looks at the class only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any, Final

from zonemgr.brandkit.base import BRAND_API, HOOKS, Brand
from zonemgr.errors import ConfigError
from zonemgr.model import privileges
from zonemgr.model.brandspec import (
    DeviceLink,
    DeviceRule,
    InitProgram,
    PlatformMount,
    PrivilegeSets,
    RestartPolicy,
)
from zonemgr.model.states import IDS_PER_ZONE

Check = Callable[[object], str | None]
PLACEHOLDERS: Final = frozenset({"zonepath", "root", "zonename", "data"})
LOGIN_PLACEHOLDERS: Final = frozenset({"user", "zonename"})
CGROUPS: Final = ("v2", "v1", "any", "none")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)``, or nothing."""
    from difflib import get_close_matches  # 4 ms, on the way to an error only

    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def faults(cls: type[Brand], name: str) -> Iterator[str]:
    """What is wrong with a brand class, each as the end of a sentence that begins with its file."""
    own = _own(cls)
    if own.get("api", BRAND_API) != BRAND_API:
        yield f"written for brand API {own['api']}, this zonemgr speaks {BRAND_API}"
        return
    for attribute, value in own.items():
        fault = _fault(attribute, value)
        if fault:
            yield fault
    if own.get("name") != name:
        yield f"name is {own.get('name', '')!r}, but the brand is known as {name!r}"
    if own.get("shutdown_command") == () and not own.get("shutdown_signal"):
        yield "shutdown_command is empty and shutdown_signal too: one of them must end a zone in good order"
    yield from _impossible_privileges(cls)


def _impossible_privileges(cls: type[Brand]) -> Iterator[str]:
    """A set of privileges that no zone of the brand could ever have."""
    for ip_type in sorted(cls.ip_types):
        sets = cls.privileges(cls, ip_type)  # type: ignore[arg-type] # reads class attributes only
        both = privileges.expand(sets.required) & privileges.expand(sets.prohibited)
        if both:
            yield f"required_privileges and prohibited_privileges both hold {min(both)!r} (ip-type {ip_type})"


def _own(cls: type[Brand]) -> dict[str, Any]:
    """What the brand's classes define on top of Brand, the most derived last."""
    between = [base for base in reversed(cls.__mro__) if base is not Brand and issubclass(base, Brand)]
    return {key: value for base in between for key, value in vars(base).items() if not key.startswith("_")}


def _fault(attribute: str, value: object) -> str | None:
    if attribute in HOOKS:
        return _hook_fault(attribute, value)
    check = CHECKS.get(attribute)
    if check is None:
        hint = nearest_attribute(attribute)
        return f"unknown attribute {attribute!r}{hint}; names of helpers begin with an underscore"
    why = check(value)
    return f"{attribute} {why}" if why else None


def nearest_attribute(word: str) -> str:
    """`` (did you mean 'x'?)`` among all that a brand may declare, or nothing."""
    return did_you_mean(word, [*HOOKS, *CHECKS])


def _hook_fault(name: str, value: object) -> str | None:
    if not isinstance(value, FunctionType):
        return f"{name} is not a method"
    wanted = getattr(Brand, name).__code__
    given = value.__code__
    most = given.co_argcount if not given.co_flags & 0x04 else 99  # *args
    least = given.co_argcount - len(value.__defaults__ or ())
    if not least <= wanted.co_argcount <= most:
        parameters = ", ".join(wanted.co_varnames[: wanted.co_argcount])
        return f"{name} takes ({parameters})"
    return None


# -- one check per kind of value: None, or the end of a sentence that begins with the attribute -----------------


def _text(value: object) -> str | None:
    if not isinstance(value, str) or "\0" in value or "\n" in value:
        return f"is not a line of text: {value!r}"
    return None


def _boolean(value: object) -> str | None:
    return None if isinstance(value, bool) else f"is neither True nor False: {value!r}"


def _seconds(value: object) -> str | None:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 7 * 86400
    return None if good else f"is not a number of seconds up to a week: {value!r}"


def _api(value: object) -> str | None:
    return None if value == BRAND_API else f"is not {BRAND_API}"


def _absolute(value: object) -> str | None:
    if _text(value) or not str(value).startswith("/") or ".." in str(value).split("/"):
        return f"is not an absolute path without '..': {value!r}"
    return None


def _words(value: object) -> str | None:
    if not isinstance(value, tuple) or any(_text(word) for word in value):
        return f"is not a tuple of texts: {value!r}"
    return None


def _command(value: object) -> str | None:
    why = _words(value)
    if why is None and isinstance(value, tuple) and value:
        return _absolute(value[0])
    return why


def _environment(value: object) -> str | None:
    if not isinstance(value, Mapping) or any(_text(word) for pair in value.items() for word in pair):
        return f"is not a mapping of texts: {value!r}"
    bad = [name for name in value if not name or "=" in name]
    return f"has an impossible name: {bad[0]!r}" if bad else None


def _signal(value: object) -> str | None:
    import re

    good = isinstance(value, str) and re.fullmatch(r"(SIG(RTMIN\+\d{1,2}|[A-Z0-9]+))?", value)
    return None if good else f"is not the name of a signal: {value!r}"


def _privileges(value: object) -> str | None:
    if not isinstance(value, frozenset) or any(_text(word) for word in value):
        return f"is not a frozenset of privilege names: {value!r}"
    try:
        privileges.expand(value)
    except ConfigError as error:
        return f"holds an {error.text.partition(' specified')[0]}"
    return None


def _login_command(value: object) -> str | None:
    why = _command(value)
    if why is None and isinstance(value, tuple):
        return next((why for word in value if (why := _placeholder(word, LOGIN_PLACEHOLDERS))), None)
    return why


def _choice(*words: str) -> Check:
    def check(value: object) -> str | None:
        if isinstance(value, str) and value in words:
            return None
        return f"is none of {', '.join(words)}: {value!r}{did_you_mean(str(value), words)}"

    return check


def _base(value: object) -> str | None:
    if isinstance(value, str) and (not value or value.startswith("/") or "/" not in value):
        return _text(value)
    return f"is neither the name of a brand nor the absolute path of its folder: {value!r}"


def _restart(value: object) -> str | None:
    if not isinstance(value, RestartPolicy):
        return f"is not a RestartPolicy: {value!r}"
    for name in ("ended", "failed", "rebooted"):
        why = _choice("halt", "reboot")(getattr(value, name))
        if why:
            return f"{name} {why}"
    for name in ("quick_s", "free", "delay_max_s"):
        number = getattr(value, name)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number <= 86400:
            return f"{name} is not a number from 0 to 86400: {number!r}"
    return None


def _ip_type_privileges(value: object) -> str | None:
    if not isinstance(value, Mapping):
        return f"is not a mapping of ip-types: {value!r}"
    for ip_type, sets in value.items():
        why = _choice("exclusive", "shared")(ip_type)
        if why:
            return f"key {why}"
        if not isinstance(sets, PrivilegeSets):
            return f"{ip_type} is not a PrivilegeSets: {sets!r}"
        for name in ("default", "required", "prohibited"):
            why = _privileges(getattr(sets, name))
            if why:
                return f"{ip_type} {name} {why}"
    return None


def _ip_types(value: object) -> str | None:
    if not isinstance(value, frozenset) or not value or not value <= {"exclusive", "shared"}:
        return f"is not a frozenset of 'exclusive' and 'shared': {value!r}"
    return None


def _mounts(value: object) -> str | None:
    if not isinstance(value, tuple) or not all(isinstance(mount, PlatformMount) for mount in value):
        return "is not a tuple of PlatformMount"
    for mount in value:
        why = _mount(mount)
        if why:
            return why
    return None


def _mount(mount: PlatformMount) -> str | None:
    about = f"holds {mount!r}: "
    if _absolute(mount.directory):
        return f"{about}directory {_absolute(mount.directory)}"
    if mount.kind not in ("dir", "file"):
        return f"{about}kind is neither 'dir' nor 'file'"
    if _words(mount.options):
        return f"{about}options {_words(mount.options)}"
    why = _placeholder(mount.special)
    if why:
        return about + why
    if mount.type == "bind" and not mount.special.startswith(("/", "{zonepath}", "{root}", "{data}")):
        return f"{about}special is not an absolute path"
    return None


def _placeholder(text: str, known: frozenset[str] = PLACEHOLDERS) -> str | None:
    """None, or what is wrong with the ``{...}`` in a path."""
    from string import Formatter

    try:
        names = [name for _literal, name, _form, _conversion in Formatter().parse(text) if name is not None]
    except ValueError as error:
        return f"{text!r} cannot be filled in: {error}"
    for name in names:
        if name not in known:
            return f"{{{name}}} is not known{did_you_mean(name, known)}"
    return None


def _device_name(name: str, what: str) -> str | None:
    if _text(name) or not name or name.startswith("/") or ".." in name.split("/"):
        return f"{what} is not a path below /dev: {name!r}"
    return None


def _devices(value: object) -> str | None:
    if not isinstance(value, tuple) or not all(isinstance(rule, DeviceRule) for rule in value):
        return "is not a tuple of DeviceRule"
    return next((why for rule in value if (why := _device(rule))), None)


def _device(rule: DeviceRule) -> str | None:
    why = _device_name(rule.match, "match")
    if rule.name:
        if any(letter in rule.match for letter in "*?["):
            return f"holds {rule!r}: a pattern cannot be renamed"
        why = why or _device_name(rule.name, "name")
    return why or (_choice("exclusive", "shared")(rule.ip_type) if rule.ip_type else None)


def _links(value: object) -> str | None:
    if not isinstance(value, tuple) or not all(isinstance(link, DeviceLink) for link in value):
        return "is not a tuple of DeviceLink"
    return next((why for link in value if (why := _device_name(link.path, "path"))), None)


CHECKS: Final[Mapping[str, Check]] = {
    "name": _text,
    "api": _api,
    "version": _text,
    "summary": _text,
    "init": _absolute,
    "init_arguments": _words,
    "init_environment": _environment,
    "init_terminal": _boolean,
    "init_notifies": _boolean,
    "base": _base,
    "restart": _restart,
    "login_command": _login_command,
    "forced_login_command": _login_command,
    "user_command": _login_command,
    "shutdown_command": _command,
    "shutdown_signal": _signal,
    "default_privileges": _privileges,
    "required_privileges": _privileges,
    "prohibited_privileges": _privileges,
    "ip_types": _ip_types,
    "ip_type_privileges": _ip_type_privileges,
    "cgroup": _choice(*CGROUPS),
    "delegate_cgroup": _boolean,
    "mandatory_label": _boolean,
    "mounts": _mounts,
    "zone_mounts": _mounts,
    "devices": _devices,
    "links": _links,
    "more_mounts": _mounts,
    "more_zone_mounts": _mounts,
    "more_devices": _devices,
    "more_links": _links,
    "scratch_mount": _boolean,
    "verify_only_looks": _boolean,
    "install_deadline_s": _seconds,
    "uninstall_deadline_s": _seconds,
}


def init_fault(program: object) -> str | None:
    """What is wrong with what ``init_program`` returned: None, or the end of a sentence that begins with the brand."""
    if not isinstance(program, InitProgram):
        return f"is no InitProgram: {program!r}"
    if _text(program.path) or not program.path or ("/" in program.path and _absolute(program.path)):
        return f"path is neither an absolute path nor a plain name: {program.path!r}"
    if not isinstance(program.arguments, tuple) or any(
        not isinstance(word, str) or "\0" in word for word in program.arguments
    ):
        return f"arguments is not a tuple of texts: {program.arguments!r}"
    ids = (program.uid, program.gid, *program.groups)
    if not all(isinstance(number, int) and 0 <= number < IDS_PER_ZONE for number in ids):
        return f"holds an id that no zone has: {ids!r}"
    named: tuple[tuple[str, Check, object], ...] = (
        ("environment", _variables, program.environment),
        ("folder", _absolute, program.folder),
        ("shutdown_command", _command, program.shutdown_command),
        ("shutdown_signal", _signal, program.shutdown_signal),
    )
    return next((f"{name} {why}" for name, check, value in named if (why := check(value))), None)


def _variables(value: object) -> str | None:
    """As ``_environment``, but values may have more than one line: they come from images, not from brands."""
    if not isinstance(value, Mapping):
        return f"is not a mapping of texts: {value!r}"
    for name, text in value.items():
        if _text(name) or not name or "=" in name or not isinstance(text, str) or "\0" in text:
            return f"has an impossible entry: {name!r}"
    return None
