"""Checks of single values: each takes what TOML (or an editor's text) gave and returns the one canonical form.

A refused value raises Refused with a text that continues "PROPERTY ...".  Nothing here knows where a value came
from, and nothing looks at the host: whether a path or a link exists is asked when the zone is made ready.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from zonemgr.errors import message
from zonemgr.model.states import BOOTARGS_MAX, GLOBAL_ZONE, ZONENAME_MAX

Check = Callable[[object], object]

MAX_TEXT: Final = 1023


class Refused(ValueError):
    """A value is not what its property takes; the text continues "PROPERTY ..."."""

    def __init__(self, form: str, /, **arguments: object) -> None:
        super().__init__(message(form, **arguments))


# Patterns are compiled when first used: most starts of a program need none of them.
_NAME: Final = r"[a-zA-Z0-9][-_.a-zA-Z0-9]*"
_HOST_NAME: Final = r"[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?)*"
_BRAND: Final = r"[a-zA-Z0-9][-_a-zA-Z0-9]*"
_SIZE: Final = r"([0-9]+(?:\.[0-9]+)?)\s*([KMGTkmgt]?)(?:i?[Bb])?"
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_HEX: Final = r"(?:0[xX])?([0-9a-fA-F]{1,8})"
_HOSTID_MAX: Final = 0xFFFFFFFE
_LINK: Final = r"[^\s/:%]{1,15}"
_MAC: Final = r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}"
_OWNER: Final = r"([0-9]+):([0-9]+)"
_ID_MAX: Final = 0xFFFFFFFE
_RCTL_NAME: Final = r"zone\.[a-z][-a-z]*"
_RCTL_VALUE: Final = r"\(?\s*priv=(\w+)\s*,\s*limit=([0-9]+)\s*,\s*action=([\w=]+)\s*\)?"
_ATTR_NAME: Final = r"[a-zA-Z0-9][-.a-zA-Z0-9]*"
_FS_TYPES_REFUSED: Final = frozenset({
    "proc", "mntfs", "autofs", "cachefs", "sysfs", "cgroup", "cgroup2", "devpts", "devtmpfs", "securityfs",
    "debugfs", "tracefs", "configfs", "bpf", "binfmt_misc", "efivarfs", "pstore", "mqueue",
})  # fmt: skip
_ADMIN_RIGHTS: Final = frozenset({"login", "manage", "clonefrom"})


def text(value: object) -> str:
    """One line of printable text."""
    if not isinstance(value, str):
        raise Refused("must be a string, not {kind}", kind=_kind(value))
    if len(value) > MAX_TEXT:
        raise Refused("is longer than {most} characters", most=MAX_TEXT)
    if not value.isprintable():
        raise Refused("holds a character that cannot be printed")
    return value


def word(value: object) -> str:
    """A non-empty text without blanks."""
    given = text(value)
    if not given:
        raise Refused("must not be empty")
    if any(character.isspace() for character in given):
        raise Refused("must not hold blanks: '{given}'", given=given)
    return given


def boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise Refused("must be true or false, not {kind}", kind=_kind(value))
    return value


def integer(value: object) -> int:
    # bool is an int to Python; to an administrator it is a slip.
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refused("must be a whole number, not {kind}", kind=_kind(value))
    return value


def number_from(low: int, high: int = (1 << 63) - 1) -> Check:
    """A whole number between ``low`` and ``high``, both allowed."""

    def check(value: object) -> int:
        given = integer(value)
        if not low <= given <= high:
            raise Refused("property is out of range.")
        return given

    return check


def cpus(value: object) -> float:
    """A number of CPUs, at least 0.01."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Refused("must be a number, not {kind}", kind=_kind(value))
    if not 0.01 <= value <= 65536:
        raise Refused("property is out of range.")
    return float(value)


def cpu_range(value: object) -> str:
    """``n`` or ``a-b`` with 1 <= a <= b."""
    given = str(value) if isinstance(value, int) and not isinstance(value, bool) else text(value)
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", given)
    if not match or not 1 <= int(match[1]) <= int(match[2] or match[1]):
        raise Refused("must be a number or a range such as 2-4, not '{given}'", given=given)
    return given


def id_ranges(value: object) -> str:
    """Numbers and ranges of CPUs, cores or sockets: ``0-3,6``, in order and each once."""
    given = str(value) if isinstance(value, int) and not isinstance(value, bool) else text(value)
    last = -1
    for part in given.replace(" ", "").split(","):
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part)
        if not match or not last < int(match[1]) <= int(match[2] or match[1]):
            raise Refused("must be rising numbers and ranges such as 0-3,6, not '{given}'", given=given)
        last = int(match[2] or match[1])
    return given.replace(" ", "")


def size_bytes(value: object) -> int:
    """Bytes: a whole number, or text with a unit K, M, G or T (powers of 1024)."""
    if isinstance(value, str):
        match = re.fullmatch(_SIZE, value.strip())
        if not match:
            raise Refused('must be a size such as "512M" or "1.5G", not \'{value}\'', value=value)
        count, unit = match[1], _UNITS[match[2].upper()]
        given = int(count) * unit if count.isdigit() else round(float(count) * unit)
    else:
        given = integer(value)
    if not 0 <= given < 1 << 63:
        raise Refused("property is out of range.")
    return given


def size_from(low_bytes: int, low_text: str) -> Check:
    """A size of at least ``low_bytes``; ``low_text`` is that size as an administrator writes it."""

    def check(value: object) -> int:
        given = size_bytes(value)
        if given < low_bytes:
            raise Refused("property is out of range. (at least {low_text})", low_text=low_text)
        return given

    return check


def bandwidth(value: object) -> str:
    """Bits a second with a unit: 100M, 2.5G."""
    given = text(value)
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?[KMG]?", given) or float(given.rstrip("KMG")) <= 0:
        raise Refused("must be a number of bits a second such as 100M, not '{given}'", given=given)
    return given


def one_of(*choices: str) -> Check:
    """One of a few words."""

    def check(value: object) -> str:
        given = text(value)
        if given not in choices:
            raise Refused("must be {choices}, not '{given}'", choices=" or ".join(choices), given=given)
        return given

    return check


def list_of(check: Check) -> Check:
    """A list; one bare value stands for a list of one.  Duplicates are refused."""

    def check_list(value: object) -> tuple[object, ...]:
        items = value if isinstance(value, (list, tuple)) else [value]
        result: list[object] = []
        for item in items:
            canonical = check(item)
            if canonical in result:
                raise Refused("holds '{item}' twice", item=item)
            result.append(canonical)
        return tuple(result)

    return check_list


def zone_name(value: object) -> str:
    """A name a zone may have: grammar of the reference, section 0.1, and no reserved name."""
    given = text(value)
    if given == GLOBAL_ZONE:
        raise Refused("'global' is the host itself")
    if given.startswith(("SUNW", "SYS")):
        raise Refused("'{given}' is reserved: names that begin with SUNW or SYS are", given=given)
    if len(given) > ZONENAME_MAX:
        raise Refused(
            "'{given}' has {count} characters, {most} is the most",
            given=given,
            count=len(given),
            most=ZONENAME_MAX,
        )
    if not re.fullmatch(_NAME, given):
        raise Refused(
            "'{given}' is not a zone name: a letter or digit, then letters, digits, '-', '_' and '.'",
            given=given,
        )
    return given


def absolute_path(value: object) -> str:
    """An absolute path without ``.``, ``..``, repeated or trailing slashes."""
    given = text(value)
    if not given.startswith("/"):
        raise Refused("{given} is not an absolute path.", given=given)
    parts = [part for part in given.split("/") if part]
    if any(part in (".", "..") for part in parts):
        raise Refused("{given} must not hold '.' or '..'", given=given)
    return "/" + "/".join(parts)


def below_root_path(value: object) -> str:
    """An absolute path that is not the root itself."""
    path = absolute_path(value)
    if path == "/":
        raise Refused("/ is not allowed.")
    return path


def brand_name(value: object) -> str:
    given = text(value)
    if not re.fullmatch(_BRAND, given) or len(given) > ZONENAME_MAX:
        raise Refused("'{given}' is not a brand name", given=given)
    return given


def boot_arguments(value: object) -> str:
    given = text(value)
    if len(given) > BOOTARGS_MAX:
        raise Refused("is longer than {most} characters", most=BOOTARGS_MAX)
    return given


def privilege_list(value: object) -> str:
    """The text of ``limitpriv``; names are checked here, the brand's sets when the zone is made ready."""
    given = "".join(text(value).split())
    if given:
        from zonemgr.model import privileges

        privileges.check_names(given)
    return given


def system_call(value: object) -> str:
    """A system call's name, with ``!`` before one that is to be denied."""
    given = word(value)
    if not re.fullmatch(r"!?[a-z_][a-z0-9_]*", given):
        raise Refused(f"'{given}' is not the name of a system call")
    return given


SECURITY_FLAGS = ("aslr", "forbidnullmap", "noexecstack")


def security_flags(value: object) -> str:
    """Names of process security flags with commas between them; ``all`` and ``none`` stand for what they say."""
    given = "".join(text(value).split())
    names = {name for name in given.split(",") if name not in ("all", "none")}
    for name in sorted(names - set(SECURITY_FLAGS)):
        raise Refused(f"'{name}' is not a security flag (they are {', '.join(SECURITY_FLAGS)})")
    if "all" in given.split(","):
        names = set(SECURITY_FLAGS)
    return ",".join(sorted(names)) or "none"


def pool_name(value: object) -> str:
    given = word(value)
    if given.startswith("SUNW"):
        raise Refused("'{given}' is reserved: names that begin with SUNW are", given=given)
    return given


def cpu_pools(value: object) -> dict[str, str]:
    """Pools of CPUs by name: ``batch = "0-3"``."""
    if not isinstance(value, dict):
        raise Refused('must be a table of names and CPUs: [pools], then NAME = "0-3"')
    return {pool_name(name): id_ranges(numbers) for name, numbers in value.items()}


def host_id(value: object) -> int:
    """A host id: hexadecimal text, or a TOML integer (0x...)."""
    if isinstance(value, str):
        match = re.fullmatch(_HEX, value)
        if not match:
            raise Refused("must be at most eight hexadecimal digits, not '{value}'", value=value)
        given = int(match[1], 16)
    else:
        given = integer(value)
    if not 0 <= given <= _HOSTID_MAX:
        raise Refused("property is out of range.")
    return given


def host_name(value: object) -> str:
    given = text(value)
    if len(given) > 64 or not re.fullmatch(_HOST_NAME, given):
        raise Refused("'{given}' is not a host name", given=given)
    return given


def link_name(value: object) -> str:
    """The name of a network link: at most 15 characters, no slash, colon or blank."""
    given = text(value)
    if not re.fullmatch(_LINK, given) or given in (".", ".."):
        raise Refused("'{given}' is not a link name (1 to 15 characters, no '/', ':' or blank)", given=given)
    return given


def mac_address(value: object) -> str:
    """A unicast Ethernet address, in lower case with two digits each; or ``auto``."""
    given = text(value)
    if given == "auto":
        return given
    if not re.fullmatch(_MAC, given):
        raise Refused("'{given}' is not an Ethernet address", given=given)
    octets = [int(part, 16) for part in given.split(":")]
    if octets[0] & 1:
        raise Refused("'{given}' is a multicast address", given=given)
    if not any(octets):
        raise Refused("'{given}' cannot be the address of a link", given=given)
    return ":".join(f"{octet:02x}" for octet in octets)


def mac_prefix(value: object) -> str:
    """The first one to five octets of a unicast Ethernet address."""
    given = text(value)
    if (
        not re.fullmatch(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){0,4}", given)
        or int(given.split(":")[0], 16) & 1
    ):
        raise Refused("'{given}' is not the beginning of an Ethernet address", given=given)
    return ":".join(part.zfill(2).lower() for part in given.split(":"))


def link_property(value: object) -> str:
    """``(name=N,value=V)``."""
    given = text(value)
    match = re.fullmatch(r"\(?\s*name=([-\w]+)\s*,\s*value=(.*?)\s*\)?", given)
    if not match:
        raise Refused("must be (name=NAME,value=VALUE), not '{given}'", given=given)
    return f"(name={match[1]},value={match[2]})"


def service_name(value: object) -> str:
    """A service as SMF or systemd names it: ``svc:/network/nfs/client``, ``zone:db``, ``nginx.service``."""
    given = word(value)
    if not re.fullmatch(r"[a-zA-Z0-9][-\w.,:/@+%]*", given):
        raise Refused("'{given}' is not the name of a service", given=given)
    return given


def interface_address(value: object) -> str:
    """An IPv4 or IPv6 address with its prefix length, as a host on a network has it."""
    given = text(value)
    bare, slash, _ = given.partition("/")
    address = _address(bare, "Neither an IPv4 nor an IPv6 address")
    if not slash:
        if address.version == 6:
            raise Refused("'{given}': IPv6 address missing required prefix length", given=given)
        raise Refused("'{given}': missing required prefix length (such as {given}/24)", given=given)
    try:
        interface = ipaddress.ip_interface(given)
    except ValueError:
        raise Refused("'{given}': the prefix length is out of range", given=given) from None
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        raise Refused("'{given}' cannot be the address of a link", given=given)
    _refuse_ends(interface, given)
    return str(interface)


def _refuse_ends(interface: ipaddress.IPv4Interface | ipaddress.IPv6Interface, given: str) -> None:
    """The first and last address of an IPv4 network are its own, except in networks of one or two addresses."""
    network = interface.network
    if network.version == 4 and network.prefixlen < 31:
        if interface.ip == network.network_address:
            raise Refused("'{given}' is the network's own address", given=given)
        if interface.ip == network.broadcast_address:
            raise Refused("'{given}' is the network's broadcast address", given=given)


def router_address(value: object) -> str:
    """An IPv4 or IPv6 address without a prefix length."""
    given = text(value)
    address = _address(given, "Neither an IPv4 nor an IPv6 address")
    if address.is_multicast or address.is_unspecified:
        raise Refused("'{given}' cannot be a router", given=given)
    return str(address)


def address_range(value: object) -> str:
    """A network, or the first and the last address with a dash between."""
    given = text(value)
    first, dash, last = given.partition("-")
    if not dash:
        try:
            return str(ipaddress.ip_network(given))
        except ValueError as error:
            raise Refused(f"'{given}' is neither a network nor FIRST-LAST ({error})") from None
    low, high = (_address(part.strip(), "Neither an IPv4 nor an IPv6 address") for part in (first, last))
    if low.version != high.version or int(low) > int(high):
        raise Refused(f"'{given}' is no range of addresses")
    return f"{low}-{high}"


def listen_address(value: object) -> str:
    """An address of the host itself, its loopback included."""
    given = text(value)
    address = _address(given, "Neither an IPv4 nor an IPv6 address")
    if address.is_multicast or address.is_unspecified:
        raise Refused(f"'{given}' cannot be an address of the host")
    return str(address)


def allowed_address(value: object) -> str:
    """An address or a network."""
    given = text(value)
    try:
        return str(ipaddress.ip_interface(given))
    except ValueError:
        raise Refused("'{given}': Neither an IPv4 nor an IPv6 address", given=given) from None


def _address(given: str, complaint: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        address = ipaddress.ip_address(given)
    except ValueError:
        raise Refused("'{given}': {complaint}", given=given, complaint=complaint) from None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        raise Refused("'{given}': an address with a scope is not allowed here", given=given)
    return address


def file_system_type(value: object) -> str:
    """A file-system type a zone may ask for; ``lofs`` is the Solaris word for ``bind``."""
    given = word(value)
    if "/" in given:
        raise Refused("'{given}' must not hold '/'", given=given)
    if given == "lofs":
        return "bind"
    if given in _FS_TYPES_REFUSED or given.startswith("nfs"):
        raise Refused("{given} is not allowed.", given=given)
    return given


def mount_option(value: object) -> str:
    given = word(value)
    if "," in given:
        raise Refused("'{given}': each option is an item of its own", given=given)
    return given


def owner(value: object) -> str:
    """``uid:gid`` of a host user that is not root."""
    given = text(value)
    match = re.fullmatch(_OWNER, given)
    if not match:
        raise Refused("must be numbers, uid:gid, not '{given}'", given=given)
    uid, gid = int(match[1]), int(match[2])
    if max(uid, gid) > _ID_MAX:
        raise Refused("property is out of range.")
    if uid == 0 or gid == 0:
        raise Refused('must not be root (idmap = "root" says so in so many words)')
    return f"{uid}:{gid}"


def device_match(value: object) -> str:
    """A path or shell pattern below /dev, given with or without /dev/ in front."""
    given = word(value).removeprefix("/dev/")
    if given.startswith("/") or any(part in ("", ".", "..") for part in given.split("/")):
        raise Refused("'{given}' is not a path below /dev", given=given)
    return given


def attribute_name(value: object) -> str:
    given = text(value)
    if not re.fullmatch(_ATTR_NAME, given):
        raise Refused("'{given}' is not an attribute name (letters, digits, '-' and '.')", given=given)
    return given


def attribute_value(value: object) -> str:
    """Kept as text whatever its type is; ``zone`` compares it with the attribute's type."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return text(value)


def data_set(value: object) -> str:
    given = word(value)
    if given.startswith("/") or given.endswith("/") or "//" in given:
        raise Refused("'{given}' is not a dataset name", given=given)
    return given


def user_name(value: object) -> str:
    given = word(value)
    if ":" in given or given.startswith("-"):
        raise Refused("'{given}' is not a user name", given=given)
    return given


def admin_right(value: object) -> str:
    given = text(value)
    if given not in _ADMIN_RIGHTS:
        raise Refused(
            "'{given}' is not one of {choices}", given=given, choices=", ".join(sorted(_ADMIN_RIGHTS))
        )
    return given


def file_system_name(value: object) -> str:
    given = text(value)
    if not re.fullmatch(r"-?[a-zA-Z0-9]+|-", given):
        raise Refused("'{given}' is not a file-system type", given=given)
    return given


def rctl_name(value: object) -> str:
    given = text(value)
    if not re.fullmatch(_RCTL_NAME, given):
        raise Refused("'{given}' must be 'zone.' and small letters or dashes", given=given)
    return given


def process_limit(value: object) -> str:
    """A number, or ``unlimited``."""
    if isinstance(value, str) and value in ("unlimited", "infinity"):
        return "unlimited"
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, str):
        raise Refused(f"must be a number or unlimited, not '{value}'")
    return str(number_from(0)(value))


@dataclass(frozen=True, slots=True)
class RctlValue:
    """One threshold of a resource control."""

    priv: str
    limit: int
    action: str

    def __str__(self) -> str:
        return f"(priv={self.priv},limit={self.limit},action={self.action})"


def rctl_value(value: object) -> RctlValue:
    """``(priv=privileged,limit=N,action=deny)``, or a table with these three keys."""
    if isinstance(value, RctlValue):
        return value
    if isinstance(value, str):
        match = re.fullmatch(_RCTL_VALUE, value)
        parts: tuple[object, object, object] = (match[1], int(match[2]), match[3]) if match else ("", 0, "")
    elif isinstance(value, dict) and set(value) == {"priv", "limit", "action"}:
        parts = (value["priv"], value["limit"], value["action"])
    else:
        parts = ("", 0, "")
    priv, limit, action = parts
    good = priv in ("privileged", "basic") and action in ("none", "deny")
    if not good or isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise Refused(
            'invalid rctl value: {value} (use "(priv=privileged,limit=N,action=deny)")', value=value
        )
    return RctlValue(str(priv), limit, str(action))


def _kind(value: object) -> str:
    names: Sequence[tuple[type, str]] = (
        (bool, "true or false"), (int, "a number"), (float, "a number"), (str, "a string"),
        (list, "a list"), (dict, "a table"),
    )  # fmt: skip
    return next((name for kind, name in names if isinstance(value, kind)), type(value).__name__)
