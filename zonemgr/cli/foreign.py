"""Configurations of Solaris and illumos zones, read as commands of ours: ``zonecfg export`` text and zone XML files.

Nothing is dropped silently: what has no meaning on Linux, or needs a decision that only the administrator can take,
becomes a report, one line each.  The result is text for ``editor``; this module neither reads nor writes files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from zonemgr.cli import configtext
from zonemgr.cli.configtext import Line
from zonemgr.errors import ConfigError, message
from zonemgr.model import schema

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

SIZE_MAX: Final = 1 << 20  # bytes of a file worth reading

NATIVE_BRANDS: Final = frozenset(
    ("native", "ipkg", "lipkg", "solaris", "illumos", "sparse", "pkgsrc", "joyent", "joyent-minimal")
)
# Properties that mean the same here; the others are decided upon one by one, or are only ours.
DECIDED: Final = frozenset(("zonename", "zonepath", "brand", "ip-type"))
KEPT: Final = frozenset(row.name for row in schema.GLOBAL_PROPERTIES) - DECIDED
# Of links, those that need no translation.
LINK_KEPT: Final = (
    "linkname", "vlan-id", "maxbw", "mtu", "priority", "link-protection", "allowed-dhcp-cids", "global-nic", "property",
)  # fmt: skip
LINK_SILENT: Final = (("vlan-id", "0"), ("linkname", "auto"), ("configure-allowed-address", "true"))
LINK_SEVERAL: Final = ("address", "allowed-address", "defrouter")  # that a link may have more than one of
MOUNT_OPTIONS: Final[Mapping[str, str]] = {
    "ro": "ro",
    "nodevices": "nodev",
    "nodev": "nodev",
    "nosetuid": "nosuid",
    "nosuid": "nosuid",
    "noexec": "noexec",
    "noatime": "noatime",
}
MEANINGLESS_OPTIONS: Final = frozenset(("rw", "devices", "setuid", "suid", "exec", "nosub", "atime"))


@dataclass(frozen=True, slots=True)
class Block:
    """A resource, or one global property (``kind`` empty)."""

    kind: str
    values: Mapping[str, tuple[str, ...]]
    number: int = 0


@dataclass(slots=True)
class Translation:
    """Commands of ours, each with the line it came from, and what is to be told."""

    commands: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)

    def command(self, number: int, *words: str) -> None:
        self.commands.append((number, words))

    def report(self, number: int, text: str) -> None:
        self.reports.append(message("line {line}: {text}", line=number, text=text) if number else text)


def translate(text: str, *, bridge: str, links: Sequence[str] = ()) -> Translation:
    """Translate a configuration.  ``bridge`` takes links that have no counterpart, ``links`` are the host's own.

    Raises ConfigError for a text that is neither form.
    """
    blocks = _blocks_of_xml(text) if text.lstrip().startswith("<") else _blocks_of_text(text)
    made = Translation()
    for block in _one_link_each(blocks, made):
        if not block.kind:
            _property(block, made)
            continue
        rule = _RULES.get(block.kind)
        if rule is None:
            made.report(block.number, message("{kind}: has no counterpart, left out", kind=block.kind))
        else:
            rule(block, made, _Host(bridge, tuple(links)))
    return made


@dataclass(frozen=True, slots=True)
class _Host:
    bridge: str
    links: tuple[str, ...]


# -- zonecfg export ---------------------------------------------------------------------------------------------


def _blocks_of_text(text: str) -> Iterator[Block]:
    """The resources and properties of ``zonecfg export`` output."""
    kind, start, nested = "", 0, False
    values: dict[str, list[str]] = {}
    for line in configtext.commands(text, numbered=True):
        command, words = line.words[0], line.words[1:]
        if nested:  # a resource within a resource: it is named, and passed over
            nested = command != "end"
        elif command == "add" and not kind and words:
            kind, values, start = words[0], {}, line.number
        elif command == "add" and len(words) == 1:
            nested = True
            values.setdefault(words[0], []).append("")
        elif command == "end" and kind:
            yield Block(kind, {name: tuple(given) for name, given in values.items()}, start)
            kind = ""
        elif command == "set" and words:
            for name, value in _assigned(line):
                if kind:
                    values.setdefault(name, []).extend(_list(value))
                else:
                    yield Block("", {name: (value,)}, line.number)
        elif command == "add" and len(words) > 1:
            values.setdefault(words[0], []).extend(item for word in words[1:] for item in _list(word))
        elif command == "create" and not kind:
            if "-t" in words or "-a" in words:
                yield Block("", {"create": (" ".join(words),)}, line.number)
        elif command not in ("exit", "commit", "verify"):
            raise ConfigError(
                "line {number}: '{command}' is not a command of a zonecfg export",
                number=line.number,
                command=command,
            )
    if kind:
        raise ConfigError("line {number}: the {kind} resource has no end", number=start, kind=kind)


def _assigned(line: Line) -> Iterator[tuple[str, str]]:
    """``set a=b`` and ``set a = b``; a value that was not quoted keeps its blanks (as exports of bootargs have it)."""
    name, equals, value = " ".join(line.words[1:]).partition("=")
    if not equals:
        raise ConfigError("line {number}: set property=value", number=line.number)
    yield name.strip(), value.strip()


def _list(value: str) -> list[str]:
    if value.startswith("[") and value.endswith("]"):
        return [item.strip().strip('"') for item in value[1:-1].split(",") if item.strip()]
    return [value]


# -- XML --------------------------------------------------------------------------------------------------------

_ELEMENTS: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "filesystem": ("fs", {"directory": "dir"}),
    "inherited-pkg-dir": ("inherit-pkg-dir", {"directory": "dir"}),
    "network": ("net", {}),
    "automatic-network": ("anet", {}),
    "device": ("device", {}),
    "attr": ("attr", {}),
    "dataset": ("dataset", {}),
    "admin": ("admin", {}),
    "mcap": ("capped-memory", {"physcap": "physical"}),
    "pset": ("dedicated-cpu", {}),
    "rctl": ("rctl", {}),
    "security-flags": ("security-flags", {}),
}


def _blocks_of_xml(text: str) -> Iterator[Block]:
    """The resources and properties of a zone's XML file."""
    from xml.etree import ElementTree

    if "<!ENTITY" in text:
        raise ConfigError("a zone's XML file declares no entities")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ConfigError("Invalid document: {why}", why=error) from None
    if root.tag != "zone":
        raise ConfigError("Invalid document: a zone's file begins with <zone>, not <{tag}>", tag=root.tag)
    for name, value in root.attrib.items():
        if name not in ("name", "version", "debugid"):
            yield Block("", {name: (value,)})
    for element in root:
        yield from _element(element)


def _element(element: Element) -> Iterator[Block]:
    if element.tag == "tmp_pool":
        for child in element:
            yield from _element(child)
        return
    if element.tag not in _ELEMENTS:
        yield Block(element.tag, {})
        return
    kind, renamed = _ELEMENTS[element.tag]
    values: dict[str, tuple[str, ...]] = {
        renamed.get(name, name): (value,) for name, value in element.attrib.items() if value
    }
    if kind == "dedicated-cpu" and "ncpu_min" in values:
        low, high = values.pop("ncpu_min")[0], values.pop("ncpu_max", values.get("ncpu_min", ("",)))[0]
        values["ncpus"] = (low if high in ("", low) else f"{low}-{high}",)
    values.update(_link_attributes(element))
    options = tuple(child.get("name", "") for child in element.findall("fsoption"))
    if options:
        values["options"] = options
    limits = tuple(
        f"(priv={child.get('priv')},limit={child.get('limit')},action={child.get('action')})"
        for child in element.findall("rctl-value")
    )
    if limits:
        values["value"] = limits
    yield Block(kind, values)


def _link_attributes(element: Element) -> dict[str, tuple[str, ...]]:
    """What stands below a resource as elements of its own: attributes of links, and what is not known at all."""
    found: dict[str, tuple[str, ...]] = {}
    attributes = {child.get("name", ""): child.get("value", "") for child in element.findall("net-attr")}
    ip, netmask = attributes.pop("ip", ""), attributes.pop("netmask", "")
    if ip and ip != "dhcp":
        found["address"] = (f"{ip}/{_prefix_length(netmask)}" if netmask else ip,)
    for name, value in attributes.items():
        found[name if name not in element.attrib else f"{name} {value}"] = (value,)
    for child in element:
        if child.tag not in ("net-attr", "fsoption", "rctl-value"):
            found.setdefault(child.tag, ("",))
    return found


def _prefix_length(netmask: str) -> int:
    """The length that a netmask such as 255.255.255.0 stands for; one that is none is refused later, as 33."""
    parts = netmask.split(".")
    if len(parts) != 4 or not all(part.isdigit() and int(part) < 256 for part in parts):
        return 33
    return "".join(f"{int(part):08b}" for part in parts).rstrip("0").count("1")


# -- properties -------------------------------------------------------------------------------------------------


def _property(block: Block, made: Translation) -> None:
    ((name, (value,)),) = block.values.items()
    if name in KEPT:
        if value:
            made.command(block.number, "set", f"{name}={value}")
    elif name == "brand":
        if value not in NATIVE_BRANDS:
            made.report(
                block.number, message("brand {value}: has no counterpart, native is used", value=value)
            )
        elif value != "native":
            made.report(block.number, message("brand {value}: native is its counterpart", value=value))
    elif name == "zonepath":
        made.report(
            block.number,
            message(
                "zonepath {value}: the zone gets the usual one (set zonepath chooses another)", value=value
            ),
        )
    elif name == "ip-type":
        if value != "exclusive":
            made.report(
                block.number,
                message("ip-type {value}: the zone gets a network stack of its own", value=value),
            )
    else:
        made.report(
            block.number, message("{name} {value}: has no counterpart, left out", name=name, value=value)
        )


# -- resources --------------------------------------------------------------------------------------------------


def _one(block: Block, name: str) -> str:
    return block.values.get(name, ("",))[0]


def _plain(block: Block, made: Translation, _host: _Host) -> None:
    """A resource that is ours by the same name and with the same properties."""
    words = [f"{name}={_joined(values)}" for name, values in block.values.items()]
    made.command(block.number, "add", block.kind, *words)


def _joined(values: tuple[str, ...]) -> str:
    return values[0] if len(values) == 1 else "[" + ",".join(values) + "]"


def _file_system(block: Block, made: Translation, _host: _Host) -> None:
    kind, directory = _one(block, "type"), _one(block, "dir")
    if kind not in ("lofs", "tmpfs", "bind"):
        made.report(
            block.number,
            message(
                "fs {directory}: file systems of type {kind} are not on Linux, left out",
                directory=directory,
                kind=kind,
            ),
        )
        return
    options = []
    for option in block.values.get("options", ()):
        if option in MOUNT_OPTIONS:
            options.append(MOUNT_OPTIONS[option])
        elif option not in MEANINGLESS_OPTIONS:
            made.report(
                block.number,
                message(
                    "fs {directory}: option {option} has no counterpart, left out",
                    directory=directory,
                    option=option,
                ),
            )
    words = [
        f"dir={directory}",
        f"special={_one(block, 'special')}",
        f"type={'tmpfs' if kind == 'tmpfs' else 'bind'}",
    ]
    if options:
        words.append(f"options={_joined(tuple(options))}")
    if kind != "tmpfs" and "ro" not in options:
        made.report(
            block.number,
            message(
                "fs {directory}: writable, so it needs owner=UID:GID (a user of this host) or idmap=root: left out",
                directory=directory,
            ),
        )
        return
    made.command(block.number, "add", "fs", *words)


def _one_link_each(blocks: Iterable[Block], made: Translation) -> list[Block]:
    """Several addresses are several nets of one physical link there; here a link has them all."""
    found: list[Block] = []
    at: dict[str, int] = {}
    for block in blocks:
        physical = _one(block, "physical") if block.kind == "net" else ""
        first = at.get(physical)
        if not physical or first is None:
            if physical:
                at[physical] = len(found)
            found.append(block)
            continue
        together = {**block.values, **found[first].values}
        for name in LINK_SEVERAL:
            values = (*found[first].values.get(name, ()), *block.values.get(name, ()))
            if values:
                together[name] = tuple(dict.fromkeys(values))
        found[first] = replace(found[first], values=together)
        made.report(
            block.number,
            message("net {physical}: its addresses join the other ones of that link", physical=physical),
        )
    return found


def _net(block: Block, made: Translation, host: _Host) -> None:
    physical = _one(block, "physical")
    if physical in host.links:
        words = [f"physical={physical}"]
    else:
        words = [
            f"anet={host.bridge}",
            *([f"linkname={physical}"] if re.fullmatch(r"\w{1,15}", physical) else ()),
        ]
        made.report(
            block.number,
            message(
                "net {physical}: not a link of this host, a new one on bridge {bridge} instead",
                physical=physical,
                bridge=host.bridge,
            ),
        )
    _link(block, made, words, known=("physical",))


def _anet(block: Block, made: Translation, host: _Host) -> None:
    lower = _one(block, "lower-link")
    if lower and lower != "auto":
        made.report(
            block.number,
            message("anet over {lower}: bridge {bridge} instead", lower=lower, bridge=host.bridge),
        )
    _link(block, made, [f"anet={host.bridge}"], known=("lower-link",))


def _link(block: Block, made: Translation, words: list[str], *, known: tuple[str, ...]) -> None:
    """What links have in common.  Addresses that Solaris only allows are given, unless it says not to."""
    given = "allowed-address" if _one(block, "configure-allowed-address") == "false" else "address"
    addresses = _addresses(block, made, "address")
    allowed = _addresses(block, made, "allowed-address")
    for name, found in (("address", addresses), (given, allowed)):
        if found:
            words.append(f"{name}={_joined(tuple(found))}")
    routers = block.values.get("defrouter", ())
    if routers:
        words.append(f"defrouter={_joined(routers)}")
    mac = _one(block, "mac-addr") or _one(block, "mac-address")
    if re.fullmatch(r"([0-9a-fA-F]{1,2}:){5}[0-9a-fA-F]{1,2}", mac):
        words.append("mac-address=" + ":".join(part.zfill(2) for part in mac.split(":")))
    elif mac not in ("", "auto", "random", "default", "factory"):
        made.report(
            block.number,
            message("{kind}: mac-address {mac} has no counterpart, left out", kind=block.kind, mac=mac),
        )
    done = (
        *known,
        "address",
        "allowed-address",
        "configure-allowed-address",
        "defrouter",
        "mac-addr",
        "mac-address",
    )
    for name, values in block.values.items():
        if name in done or (name, values[0]) in LINK_SILENT:
            continue
        if name in LINK_KEPT:
            words.append(f"{name}={_joined(tuple(part.strip() for part in values))}")
            continue
        made.report(
            block.number,
            message("{kind}: {name} has no counterpart, left out", kind=block.kind, name=name),
        )
    made.command(block.number, "add", "net", *words)


def _addresses(block: Block, made: Translation, name: str) -> list[str]:
    """Addresses with their prefix lengths; one that has none is given the usual one, and that is told."""
    found = []
    for value in block.values.get(name, ()):
        for address in value.split(","):
            if not re.fullmatch(r"[0-9.]+|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*", address.partition("/")[0]):
                made.report(
                    block.number,
                    message(
                        "{kind}: {address} is a name, and needs to be an address: left out",
                        kind=block.kind,
                        address=address,
                    ),
                )
                continue
            if "/" not in address:
                length = 64 if ":" in address else 24
                made.report(
                    block.number,
                    message(
                        "{kind}: {address} has no prefix length, /{length} is taken",
                        kind=block.kind,
                        address=address,
                        length=length,
                    ),
                )
                address = f"{address}/{length}"
            found.append(address)
    return found


def _inherited(block: Block, made: Translation, _host: _Host) -> None:
    made.report(
        block.number,
        message(
            "inherit-pkg-dir {dir}: the native brand shows the host's /usr anyway", dir=_one(block, "dir")
        ),
    )


def _flags(block: Block, made: Translation, _host: _Host) -> None:
    """Security flags, which Solaris writes in either case."""
    words = [f"{name}={_joined(values).lower()}" for name, values in block.values.items()]
    made.command(block.number, "add", block.kind, *words)


_Rule = Callable[[Block, Translation, _Host], None]
_RULES: Final[Mapping[str, _Rule]] = {
    **dict.fromkeys(schema.RESOURCES, _plain),
    "fs": _file_system,
    "net": _net,
    "anet": _anet,
    "inherit-pkg-dir": _inherited,
    "security-flags": _flags,
}
