"""A configuration that came with files of somebody else: what grants something of this host's is taken out."""

from __future__ import annotations

from pathlib import Path

import pytest

from zonemgr.model.privileges import DEFAULT_CAPABILITIES
from zonemgr.store import admission
from zonemgr.store.config import Draft
from zonemgr.store.paths import Layout

HEAD = 'zonename = "web"\nzonepath = "/zones/web"\nbrand = "native"\n'
OWN_LINK = '[[net]]\nanet = "zbr0"\naddress = ["10.0.0.2/24"]\n'


def disarmed(tmp_path: Path, text: str) -> tuple[list[str], Draft]:
    draft = Draft.new(Layout.at(tmp_path), "web", HEAD + text)
    return admission.disarm(draft, DEFAULT_CAPABILITIES, "zbr0"), draft


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('hostname = "deb.debian.org"\n', "hostname = deb.debian.org"),  # others find it by that name
        ("oom-score-adj = -999\n", "oom-score-adj = -999"),
        ("max-lwps = 4000000\n", "max-lwps = 4000000"),
        ("max-processes = 400000\n", "max-processes = 400000"),
        ("[dedicated-cpu]\nncpus = 1\n", "dedicated-cpu"),
        ("autoboot = true\n", "autoboot = true"),
        ('requires = ["db", "mail"]\n', "requires = db, mail"),  # would boot them too
        ('after = ["db"]\n', "after = db"),
        ('boot-priority = "high"\n', "boot-priority = high"),
        ('[[attr]]\nname = "label"\ntype = "string"\nvalue = "unconfined_t"\n', "attr label = unconfined_t"),
        (OWN_LINK + "vlan-id = 7\n", "net zbr0 with an Ethernet address or a VLAN of its own"),
        (OWN_LINK + 'mac-address = "02:00:00:00:00:01"\n', "net zbr0 with an Ethernet address or a VLAN of its own"),
        (OWN_LINK + 'allowed-address = ["0.0.0.0/0"]\n', "net zbr0 with a protection of its own"),
        ('[[net]]\nphysical = "eth0"\n', "net eth0"),
        (
            '[[rctl]]\nname = "zone.max-lwps"\nvalue = ["(priv=privileged,limit=900000,action=deny)"]\n',
            "max-lwps = 900000",
        ),
    ],
)
def test_what_grants_is_named_and_gone(tmp_path: Path, text: str, told: str) -> None:
    found, draft = disarmed(tmp_path, text)
    assert found == [told]
    assert draft.text.rstrip() == HEAD.rstrip()


@pytest.mark.parametrize(
    "text",
    [
        OWN_LINK,
        OWN_LINK + 'mac-address = "auto"\nmac-prefix = "02:08:20"\n',
        'autoboot = false\nboot-priority = "low"\nautoshutdown = "halt"\n',
        'hostname = "web"\nmax-lwps = 200\noom-score-adj = 300\n',
        "max-processes = 100\n[capped-memory]\nphysical = \"64M\"\n",
    ],
)
def test_what_is_the_zones_own_stays(tmp_path: Path, text: str) -> None:
    found, draft = disarmed(tmp_path, text)
    assert found == []
    assert draft.text == HEAD + text


def test_all_of_it_at_once_leaves_a_zone(tmp_path: Path) -> None:
    text = (
        'privileged = true\nip-type = "shared"\nhostname = "x.y"\n'
        '[[net]]\nphysical = "eth0"\naddress = ["192.0.2.7/24"]\n'
        '[[net]]\nphysical = "eth1"\naddress = ["192.0.2.8/24"]\n'
        "[dedicated-cpu]\nncpus = 1\n[[device]]\nmatch = \"/dev/kmsg\"\n"
    )
    found, draft = disarmed(tmp_path, text)
    assert found == [
        *("privileged = true", "ip-type = shared", "hostname = x.y", "dedicated-cpu"),
        *("net eth0", "net eth1", "device kmsg"),
    ]
    assert draft.text.strip() == HEAD.strip()
