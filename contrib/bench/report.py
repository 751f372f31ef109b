"""What was measured, as a table for people, as JSON for programs and as a plot for the documentation."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from peers import HYBRID, Program, View

KINDS: Final = {"boot": "ms", "halt": "ms", "exec": "ms", "memory": "KiB"}
COLOURS: Final = {"boot": "#3b6ea8", "halt": "#b5563c", "exec": "#5b8f4e"}
_CUT_MS: Final = 250.0  # longer bars are cut, their figures are not

# What is held against what (the issue of this measure's targets): kind, ours, theirs, at most so many times theirs.
TARGETS: Final = (
    ("boot", "zonemgr", "crun", 0.6),
    ("boot", "zonemgr", "lxc", 0.6),
    ("boot", "zonemgr", "podman", 0.12),
    ("boot", "zonemgr", "floor", 3.0),
    ("halt", "zonemgr", "crun", 0.7),
    ("halt", "zonemgr", "lxc", 0.35),
    ("exec", "zonemgr", "crun", 0.7),
    ("exec", "zonemgr", "lxc", 0.5),
    ("boot", "cold", "zonemgr", 10.0),
)


def table(programs: Sequence[Program]) -> str:
    """Medians and 95th percentiles, and behind each median how many times the first program's it is."""
    first = programs[0]
    rows = [["", "link", "limits", *(f"{kind} {unit}" for kind, unit in KINDS.items()), "version"]]
    for program in programs:
        if program.failure or not program.samples:
            rows.append([program.name, program.net, program.limits, *["-"] * len(KINDS), "not measured, see below"])
            continue
        cells = [_cell(program, first, kind) for kind in KINDS]
        rows.append([program.name, program.net, program.limits, *cells, program.version])
    return _aligned(rows, left=(0, 1, 2, 7))


def _aligned(rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _cell(program: Program, first: Program, kind: str) -> str:
    value, base = program.median(kind), first.median(kind) if first.samples else 0.0
    text = f"{figure(value)}-{figure(program.p95(kind))}"
    return text if program is first or not base else f"{text} ({value / base:.2f}x)"


def figure(value: float) -> str:
    """Three digits are enough."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def ratios(programs: Sequence[Program]) -> list[dict[str, Any]]:
    """Each target whose two programs were measured."""
    known = {program.name: program for program in programs if program.samples and not program.failure}
    return [
        {
            "kind": kind,
            "what": ours,
            "against": theirs,
            "ratio": round(known[ours].median(kind) / known[theirs].median(kind), 3),
            "target": target,
        }
        for kind, ours, theirs, target in TARGETS
        if ours in known and theirs in known
    ]


def bulk_ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The targets of many zones at once: the most of both, as many at once as was tried."""
    found: list[dict[str, Any]] = []
    ours, theirs = ([row for row in rows if row["what"] == name and "boot" in row] for name in ("zonemgr", "crun"))
    if ours and theirs:
        mine, other = (max(those, key=lambda row: (row["count"], row["jobs"])) for those in (ours, theirs))
        for kind, target in (("boot", 0.5), ("halt", 0.7)):
            row = {"kind": f"bulk {kind}", "what": "zonemgr", "against": "crun", "target": target}
            found.append({**row, "ratio": round(mine[kind] / other[kind], 3)})
    lists = {row["count"]: row["list"] for row in rows if row["what"] == "list"}
    if len(lists) > 1:
        few, many = min(lists), max(lists)
        ratio = round(lists[many] / lists[few], 3)
        found.append({"kind": "list", "what": str(many), "against": str(few), "ratio": ratio, "target": 5.0})
    return found


def text(programs: Sequence[Program], rows: Sequence[Mapping[str, Any]], rounds: int) -> str:
    """Everything, for a terminal."""
    parts = []
    measured = [program for program in programs if program.samples]
    if programs:
        disturbed = sum(map(sum, (program.disturbed for program in measured)))
        parts.append(
            f"medians and 95th percentiles of {rounds} rounds, {os.cpu_count()} CPUs, kernel {os.uname().release}; "
            f"{disturbed} of {rounds * len(measured)} were disturbed by other load\n"
        )
        parts.append(table(programs) + "\n")
        there = ", ".join(program.name for program in programs if program.view is View.CGROUP2)
        if HYBRID and there:
            parts.append(f"{there}: with cgroup2 alone, which has no controllers on this host, and so without limits")
        parts += [f"{program.name}: {program.failure}" for program in programs if program.failure]
    if rows:
        parts.append("\nmany at once, milliseconds and KiB for each\n")
        parts.append(_bulk_table(rows) + "\n")
    against = [*ratios(programs), *bulk_ratios(rows)]
    if against:
        lines = [["", "against", "ratio", "target"]]
        lines += [
            [f"{row['kind']} {row['what']}", row["against"], f"{row['ratio']:.2f}", f"{row['target']:.2f}"]
            for row in against
        ]
        parts.append(_aligned(lines, left=(0, 1)))
    return "\n".join(parts)


def _bulk_table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = ("what", "count", "jobs", "boot", "halt", "memory", "launcher", "list", "disturbed", "note")
    lines = [list(columns)]
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        lines.append([figure(cell) if isinstance(cell, float) else str(cell) for cell in cells])
    return _aligned(lines, left=(0,))


def as_json(programs: Sequence[Program], rows: Sequence[Mapping[str, Any]], rounds: int) -> str:
    """Everything measured, for other programs."""
    return json.dumps(
        {
            "rounds": rounds,
            "cpus": os.cpu_count(),
            "kernel": os.uname().release,
            "hybrid": HYBRID,
            "programs": {
                program.name: {
                    "version": program.version,
                    "net": program.net,
                    "limits": program.limits,
                    "cgroups": program.view.value,
                    "failure": program.failure,
                    "median": {kind: round(program.median(kind), 2) for kind in program.samples},
                    "p95": {kind: round(program.p95(kind), 2) for kind in program.samples},
                    "disturbed": program.disturbed,
                    "samples": {
                        kind: [round(value, 2) for value in values] for kind, values in program.samples.items()
                    },
                }
                for program in programs
            },
            "many": list(rows),
            "ratios": [*ratios(programs), *bulk_ratios(rows)],
        },
        indent=2,
    )


def plot(programs: Sequence[Program]) -> str:
    """Bars of the medians, as SVG; a bar that would leave the picture is cut, its figure is not."""
    unit, left, width = 18, 110, 560
    measured = [program for program in programs if program.samples and not program.failure]
    most = min(max(program.median(kind) for program in measured for kind in COLOURS), _CUT_MS)
    rows, y = [], 30
    for program in measured:
        rows.append(f'<text x="{left - 8}" y="{y + 1.8 * unit}" text-anchor="end">{program.name}</text>')
        for kind, colour in COLOURS.items():
            value = program.median(kind)
            length = max(1.0, min(1.0, value / most) * width)
            rows.append(f'<rect x="{left}" y="{y}" width="{length:.0f}" height="{unit - 4}" fill="{colour}"/>')
            shown = f"{kind} {figure(value)} ms (95%: {figure(program.p95(kind))})"
            rows.append(f'<text x="{left + length + 6:.0f}" y="{y + unit - 7}">{shown}</text>')
            y += unit
        y += unit // 2
    size = f'width="{left + width + 170}" height="{y + 10}"'
    style = 'font-family="sans-serif" font-size="12"'
    title = '<text x="8" y="18">medians of one run; shorter is better</text>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', title, *rows, "</svg>"]) + "\n"
