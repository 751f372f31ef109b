"""What ``--json`` answers: the shape of each verb's output, as one table.

The document (contrib/docs/json.md) is made from it, and whatever the tests read from the program is held against it.
The program itself needs of it only the version: an answer is never checked on its way out.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from zonemgr.cli.sampling import RESOURCES
from zonemgr.model import schema
from zonemgr.model.schema import Form

# Grows when a field goes, or says something else than before.  A new field or a new verb is no reason.
VERSION: Final = 1


class Plain(enum.Enum):
    """A value without parts."""

    TEXT = "text"
    WHOLE = "whole number"
    NUMBER = "number"
    CLAIM = "true or false"
    ANY = "any value"


@dataclass(frozen=True, slots=True)
class Many:
    """A list."""

    of: Shape


@dataclass(frozen=True, slots=True)
class OrNull:
    """A value, or null."""

    of: Shape


@dataclass(frozen=True, slots=True)
class Table:
    """An object whose names are data."""

    of: Shape


@dataclass(frozen=True, slots=True)
class Field:
    """One name of an object.  An ``optional`` one may be missing."""

    name: str
    shape: Shape
    help: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """An object with these fields, and no others unless it is ``open``; ``listed`` in the document field by field."""

    name: str
    help: str
    fields: tuple[Field, ...]
    open: bool = False
    listed: bool = True


Shape = Plain | Many | OrNull | Table | Record

TEXT, WHOLE, NUMBER, CLAIM, ANY = Plain.TEXT, Plain.WHOLE, Plain.NUMBER, Plain.CLAIM, Plain.ANY


def faults(shape: Shape, value: Any, place: str = "") -> Iterator[str]:
    """Where a value, as ``json.loads`` makes it, is not of the shape."""
    match shape:
        case Plain():
            if not _is_plain(shape, value):
                yield f"{place or 'the answer'}: {value!r} is not {shape.value}"
        case OrNull():
            if value is not None:
                yield from faults(shape.of, value, place)
        case Many():
            if not isinstance(value, list):
                yield f"{place or 'the answer'}: {value!r} is not a list"
                return
            for number, item in enumerate(value):
                yield from faults(shape.of, item, f"{place}[{number}]")
        case Table():
            if not isinstance(value, dict):
                yield f"{place or 'the answer'}: {value!r} is not an object"
                return
            for name, item in value.items():
                yield from faults(shape.of, item, f"{place}.{name}")
        case Record():
            yield from _faults_of_record(shape, value, place)


def _is_plain(kind: Plain, value: Any) -> bool:
    match kind:
        case Plain.TEXT:
            return isinstance(value, str)
        case Plain.WHOLE:
            return isinstance(value, int) and not isinstance(value, bool)
        case Plain.NUMBER:
            return isinstance(value, int | float) and not isinstance(value, bool)
        case Plain.CLAIM:
            return isinstance(value, bool)
        case Plain.ANY:
            return True


def _faults_of_record(shape: Record, value: Any, place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{place or 'the answer'}: {value!r} is not {shape.name}"
        return
    names = {field.name: field for field in shape.fields}
    for name, item in value.items():
        if name in names:
            yield from faults(names[name].shape, item, f"{place}.{name}")
        elif not shape.open:
            yield f"{place}.{name}: {shape.name} has no such field"
    for field in shape.fields:
        if not field.optional and field.name not in value:
            yield f"{place}.{field.name}: is missing"


# -- the configuration, from the schema's own table ---------------------------------------------------------------

_OF_FORM: Final[Mapping[Form, Shape]] = {
    Form.TEXT: TEXT,
    Form.BOOLEAN: CLAIM,
    Form.NUMBER: WHOLE,
    Form.DECIMAL: NUMBER,
    Form.SIZE: WHOLE,
    Form.LIST: Many(TEXT),
}


def _of_row(row: schema.Property) -> Field:
    return Field(
        row.name, _OF_FORM[row.form], row.help, optional=row.default in (None, ()) and not row.required
    )


def _of_kind(kind: schema.Resource) -> Field:
    record = Record(kind.name, kind.help, tuple(map(_of_row, kind.properties)))
    return Field(kind.name, record if kind.single else Many(record), kind.help, optional=True)


CONFIGURATION: Final = Record(
    "configuration",
    "A zone's configuration: the properties and resources of zonemgr-zone(5) under their names. What is not set is not"
    " there; a size is a number of bytes.",
    (*map(_of_row, schema.GLOBAL_PROPERTIES), *map(_of_kind, schema.RESOURCES.values())),
    listed=False,
)

# -- the other records --------------------------------------------------------------------------------------------

_RESULT: Final = (
    Field("zonename", TEXT, "the zone"),
    Field("ok", CLAIM, "whether the verb's work is done"),
    Field("note", OrNull(TEXT), "that there was nothing to do, such as “zone is already booted”"),
    Field("messages", Many(TEXT), "what was said about it, also on standard error, in the caller's language"),
)
RESULT: Final = Record("result", "What became of one zone.", _RESULT)

_DIFFERENCE: Final = (
    Field("property", TEXT, "what differs, such as `capped-memory physical`"),
    Field("old", ANY, "the value that was; null: none"),
    Field("new", ANY, "the value that is to be; null: none"),
    Field("when", TEXT, "when it takes effect: `live`, `next boot` or `reinstall`"),
)
CHANGE: Final = Record(
    "change",
    "What becomes of one property of a running zone.",
    (
        *_DIFFERENCE,
        Field("state", TEXT, "`applied`, `pending` (waits for `when`) or `failed`"),
        Field("why", OrNull(TEXT), "why it is not applied"),
    ),
)
APPLIED: Final = Record(
    "applied",
    "A result with what was changed.",
    (
        *_RESULT,
        Field("changes", Many(CHANGE), "each property that differs"),
        Field("steps", Many(TEXT), "what is done for them, in order"),
    ),
)
DIFFERENCE: Final = Record("difference", "One property that a file has otherwise.", _DIFFERENCE)
DECLARED: Final = Record(
    "declared",
    "One zone of the set.",
    (
        Field("zonename", TEXT, "the zone"),
        Field("action", TEXT, "`create`, `change`, `delete` or `keep`"),
        Field("running", CLAIM, "it runs, and goes on with the configuration that it has booted with"),
        Field("changes", Many(DIFFERENCE), "what the file has otherwise"),
        Field(
            "error", OrNull(TEXT), "why it could not be done; only where something was tried", optional=True
        ),
    ),
)
LIMIT: Final = Record(
    "limit",
    "A limit of a living zone.",
    (
        Field("name", TEXT, "the property, such as `max-lwps`"),
        Field("configured", ANY, "its value in the configuration; null: a default"),
        Field("effective", ANY, "what the kernel holds; null: nothing"),
        Field("problem", TEXT, "why the kernel does not hold it", optional=True),
    ),
)
LISTED: Final = Record(
    "zone",
    "One zone as it is.",
    (
        Field("id", OrNull(WHOLE), "its number while it lives, another after each boot"),
        Field("zonename", TEXT, "the zone; `global` is the host"),
        Field("state", TEXT, "one of the states of states.md"),
        Field("zonepath", TEXT, "its folder on the host"),
        Field("uuid", OrNull(TEXT), "that of its installation"),
        Field("brand", TEXT, "its brand"),
        Field("ip-type", TEXT, "`exclusive` or `shared`"),
        Field("label", OrNull(TEXT), "its mandatory label"),
        Field("limits", Many(LIMIT), "of a living zone"),
        Field("ready", OrNull(CLAIM), "of a zone that runs: whether its init says so; of one that says nothing, true"),
        Field("status", OrNull(TEXT), "what its init said with that"),
    ),
)
AMOUNT: Final = Record(
    "amount",
    "What is used of a resource: processors, bytes, threads, or bytes a second.",
    (
        Field("used", OrNull(NUMBER), "now; of a rate over the interval, or since the boot; null: not known"),
        Field("cap", NUMBER, "the most that may be used", optional=True),
        Field("peak", NUMBER, "the most that was used", optional=True),
        Field("shares", WHOLE, "the weight against other zones", optional=True),
        Field("total", WHOLE, "the counter below a rate", optional=True),
    ),
)
USAGE: Final = Record(
    "usage",
    "What a zone uses.",
    (
        Field("zonename", TEXT, "the zone; `[zones]` are all together, `[total]` is the host"),
        *(Field(name, AMOUNT, name.replace("-", " ")) for name in RESOURCES),
        Field("oom-kills", OrNull(WHOLE), "processes that were killed for want of memory"),
        Field(
            "pressure", Table(NUMBER), "share of the last ten seconds in which something waited, by resource"
        ),
        Field("throttled-us", OrNull(WHOLE), "microseconds for which the cap on processors held it back"),
    ),
)
SAMPLE: Final = Record(
    "sample",
    "All zones at one moment.",
    (
        Field("time", NUMBER, "seconds since 1970"),
        Field("interval", OrNull(NUMBER), "seconds since the sample before; null in the first"),
        Field("zones", Many(USAGE), "each living zone"),
        Field("total", USAGE, "all of them"),
        Field("host", USAGE, "the host with everything on it"),
    ),
)
EVENT: Final = Record(
    "event",
    "Something that happened to a zone. Types: `state` (with oldstate, newstate, and zoneid where the zone lives),"
    " `init` (with ended and oom_kills), `change` (with change: applied, confirmed, reverted; and properties), `config`"
    " (with change: created, changed, deleted, renamed; and oldname), `ready` (its init says so; with status). Later"
    " releases may add types and fields.",
    (
        Field("time", NUMBER, "seconds since 1970"),
        Field("type", TEXT, "what it is about"),
        Field("zonename", TEXT, "the zone", optional=True),
        Field("oldstate", TEXT, "the state that was", optional=True),
        Field("newstate", TEXT, "the state that is", optional=True),
        Field("zoneid", OrNull(WHOLE), "its number while it lives", optional=True),
        Field("ended", TEXT, "how its init ended", optional=True),
        Field("oom_kills", WHOLE, "processes that were killed for want of memory", optional=True),
        Field("change", TEXT, "what was done to its configuration", optional=True),
        Field("properties", Many(TEXT), "which properties", optional=True),
        Field("oldname", TEXT, "its name before", optional=True),
        Field("status", TEXT, "what its init said with that", optional=True),
        Field("truncated", CLAIM, "it was too long, and the rest of it is lost", optional=True),
    ),
    open=True,
)
BRAND: Final = Record(
    "brand",
    "A brand that was found.",
    (
        Field("name", TEXT, "its name"),
        Field("source", TEXT, "`shipped`, `drop-in` (a folder) or `entry point` (of a package)"),
        Field("version", TEXT, "its version"),
        Field("state", TEXT, "`ok`, `broken`, `unusable` on this host, or `hidden` by one found before it"),
        Field("error", TEXT, "what is wrong with it"),
        Field("path", TEXT, "where it is"),
        Field("summary", TEXT, "what it is for"),
    ),
)
STEP: Final = Record(
    "step",
    "One step. Its other fields follow from its kind and may change with any release.",
    (Field("kind", TEXT, "what it is"), Field("text", TEXT, "the same in words")),
    open=True,
)
PLAN: Final = Record(
    "plan",
    "What a verb would do.",
    (
        Field("verb", TEXT, "the verb"),
        Field("zonename", TEXT, "the zone"),
        Field("ready", Many(STEP), "until the zone is ready, or all of them"),
        Field("boot", Many(STEP), "what a boot does beyond that"),
    ),
)
DECISION: Final = Record(
    "decision",
    "What one chain made of the packet.",
    (
        Field("verdict", TEXT, "`accept`, `drop`, `reject`..."),
        Field("certain", CLAIM, "whether that can be told from here"),
        Field("chain", TEXT, "the chain with its table"),
        Field("handle", OrNull(WHOLE), "the rule in it; null: its policy"),
        Field("rule", OrNull(TEXT), "the rule's text"),
    ),
)
WAY: Final = Record(
    "way",
    "One way of a packet.",
    (
        Field("from", TEXT, "where it comes from"),
        Field("family", TEXT, "`IPv4` or `IPv6`"),
        Field("passes", OrNull(CLAIM), "whether it gets through; null: that cannot be told from here"),
        Field("obstacles", Many(TEXT), "what else stops it"),
        Field("decisions", Many(DECISION), "of the packet filters, in order"),
    ),
)
TRACE: Final = Record(
    "trace",
    "The ways to a port.",
    (
        Field("zonename", TEXT, "the zone"),
        Field("protocol", TEXT, "`tcp` or `udp`"),
        Field("port", WHOLE, "the port"),
        Field("listening", CLAIM, "whether something in the zone listens there"),
        Field("ways", Many(WAY), "from each side and by each family"),
    ),
)
MENDED: Final = Record(
    "mended",
    "Something that did not fit.",
    (
        Field("zonename", TEXT, "the zone"),
        Field("found", TEXT, "what was found"),
        Field("done", TEXT, "what was done about it"),
    ),
)
EXAMINED: Final = Record(
    "examined",
    "One thing that zones need of the host.",
    (
        Field("name", TEXT, "what was looked for"),
        Field("ok", CLAIM, "whether it is there"),
        Field("required", CLAIM, "whether zones need it"),
        Field("found", TEXT, "what was found"),
        Field("cure", TEXT, "what to do about it; where it is not ok", optional=True),
    ),
)
BOOTED: Final = Record(
    "booted",
    "What became of one zone when the host booted or went down.",
    (
        Field("zonename", TEXT, "the zone"),
        Field("action", TEXT, "the verb that was tried"),
        Field("ok", CLAIM, "whether it worked"),
        Field("seconds", NUMBER, "how long it took"),
        Field("messages", Many(TEXT), "what was said about it"),
    ),
)
RECORDED: Final = Record(
    "recorded",
    "The last autoboot.",
    (
        Field("version", WHOLE, "of this record, 1"),
        Field("time", WHOLE, "seconds since 1970"),
        Field("results", Many(BOOTED), "each zone"),
    ),
)
LEFT: Final = Record(
    "manifest",
    "What detach leaves beside a zone's files, and attach reads.",
    (
        Field("version", WHOLE, "of this record, 1"),
        Field("zonename", TEXT, "the zone"),
        Field("brand", TEXT, "its brand"),
        Field("uuid", TEXT, "that of its installation"),
        Field("configuration", TEXT, "its file"),
        Field("bridge", TEXT, "the bridge that its links are on"),
        Field("shifted_by", WHOLE, "by how much the owners of its files are shifted on disk"),
    ),
)
SET: Final = Record(
    "set",
    "A set of zones, as a folder has it.",
    (
        Field("applied", CLAIM, "whether something was changed, or tried"),
        Field("zones", Many(DECLARED), "each zone"),
    ),
)
RELEASE: Final = Record(
    "release",
    "What this is.",
    (
        Field("zonemgr", TEXT, "the release"),
        Field("json", WHOLE, "the version of what this page describes"),
    ),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What these verbs, with such words behind them, answer with ``--json``.  ``lines``: one such value on each line,
    as they come; ``refused``: a list with one result instead, when it fails.  No shape: its output is no JSON.
    """

    verbs: tuple[str, ...]
    words: str
    shape: Shape | None
    note: str = ""
    lines: bool = False
    refused: bool = False


_ONE: Final = "with one"

ANSWERS: Final[Sequence[Answer]] = (
    Answer(("list",), "", Many(LISTED)),
    Answer(
        ("ready", "boot", "reboot", "halt", "shutdown", "mount", "unmount", "confirm"),
        "NAME...",
        Many(RESULT),
        "in the order of the names",
    ),
    Answer(
        (
            "verify",
            "install",
            "uninstall",
            "clone",
            "attach",
            "detach",
            "move",
            "rename",
            "mark",
            "delete",
            "sysboot",
        ),
        "NAME",
        Many(RESULT),
        _ONE,
    ),
    Answer(("export", "import"), "NAME -f FILE", Many(RESULT), _ONE),
    Answer(("export",), "NAME", None, "the archive"),
    Answer(("detach",), "NAME -n", LEFT, refused=True),
    Answer(("create",), "NAME", CONFIGURATION, refused=True),
    Answer(("config",), "NAME info", CONFIGURATION, refused=True),
    Answer(("config",), "NAME info WHAT", ANY, "that part of it, null where it is not set", refused=True),
    Answer(("config",), "NAME export", Many(TEXT), "the lines", refused=True),
    Answer(
        ("config",), "NAME COMMAND...", Many(RESULT), "with one, where no command has an answer of its own"
    ),
    Answer(("apply",), "NAME...", Many(APPLIED), "in the order of the names"),
    Answer(("apply",), "-f FOLDER", SET),
    Answer(("autoboot",), "", Many(BOOTED)),
    Answer(("autoboot",), "--status", RECORDED),
    Answer(("stat",), "", SAMPLE),
    Answer(("stat",), "INTERVAL", SAMPLE, lines=True),
    Answer(("events",), "", EVENT, lines=True),
    Answer(("brands",), "", Many(BRAND)),
    Answer(("plan",), "VERB NAME", PLAN),
    Answer(("trace",), "NAME PORT", TRACE),
    Answer(("fsck",), "", Many(MENDED)),
    Answer(("doctor",), "", Many(EXAMINED)),
    Answer(("login", "console"), "NAME", None, "what the zone says"),
    Answer(("--version",), "", RELEASE),
)


def unlike(verb: str, value: Any, *, line: bool = False) -> list[str]:
    """Why no answer of the verb's has this value (on one of its lines); empty when one has."""
    found: list[str] = []
    for answer in ANSWERS:
        if verb not in answer.verbs or answer.lines is not line:
            continue
        for shape in (answer.shape, Many(RESULT) if answer.refused else None):
            wrong = list(faults(shape, value)) if shape is not None else ["the answer: is no JSON"]
            if not wrong:
                return []
            found += wrong
    return found or [f"{verb}: has no answer of this kind"]
