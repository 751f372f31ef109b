"""Configurations of Solaris and illumos zones: what is carried over, and that the rest is told."""

from __future__ import annotations

import pytest

from zonemgr.cli.foreign import Translation, translate
from zonemgr.errors import ConfigError, ZoneError

SPARSE_WEB_SERVER = """\
create -b
set zonepath=/zones/web
set brand=native
set autoboot=true
set bootargs=-m verbose
set pool=web-pool
set limitpriv=default,sys_time
set ip-type=shared
add inherit-pkg-dir
set dir=/lib
end
add fs
set dir=/usr/local
set special=/opt/local
set type=lofs
add options [ro,nodevices]
end
add fs
set dir=/var/www
set special=/export/www
set type=lofs
end
add net
set address=192.168.0.10/24
set physical=bge0
set defrouter=192.168.0.1
end
add rctl
set name=zone.max-lwps
add value (priv=privileged,limit=300,action=deny)
end
add capped-memory
set physical=1G
end
add dataset
set name=tank/web
end
"""

XML = """\
<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE zone PUBLIC "-//Sun Microsystems Inc//DTD Zones//EN" "file:///usr/share/lib/xml/dtd/zonecfg.dtd.1">
<zone name="db" zonepath="/zones/db" autoboot="false" brand="lx" ip-type="exclusive" version="1">
  <filesystem special="swap" directory="/scratch" type="tmpfs"><fsoption name="nodevices"/></filesystem>
  <network physical="vnic3" allowed-address="10.1.1.5/24" defrouter="10.1.1.1" mac-addr="2:8:20:1:2:3"/>
  <rctl name="zone.cpu-shares"><rctl-value priv="privileged" limit="20" action="none"/></rctl>
  <mcap physcap="536870912"/>
  <tmp_pool><pset ncpu_min="1" ncpu_max="4"/></tmp_pool>
  <verified-boot policy="none"/>
</zone>
"""


def words(made: Translation) -> list[str]:
    return [" ".join(command) for _number, command in made.commands]


def test_an_export_becomes_our_commands() -> None:
    made = translate(SPARSE_WEB_SERVER, bridge="zbr0")
    assert words(made) == [
        "set autoboot=true",
        "set bootargs=-m verbose",
        "set pool=web-pool",
        "set limitpriv=default,sys_time",
        "add fs dir=/usr/local special=/opt/local type=bind options=[ro,nodev]",
        "add net anet=zbr0 address=192.168.0.10/24 defrouter=192.168.0.1",
        "add rctl name=zone.max-lwps value=(priv=privileged,limit=300,action=deny)",
        "add capped-memory physical=1G",
        "add dataset name=tank/web",
    ]


def test_what_is_not_carried_over_is_told_with_its_line() -> None:
    reports = translate(SPARSE_WEB_SERVER, bridge="zbr0").reports
    assert [report.partition(":")[0] for report in reports] == [
        "line 2",
        "line 8",
        "line 9",
        "line 18",
        "line 23",
    ]
    assert "ip-type shared" in reports[1]
    assert "owner=UID:GID" in reports[3]
    assert "bge0: not a link of this host" in reports[4]


def test_a_link_that_the_host_has_stays_a_moved_link() -> None:
    made = translate(SPARSE_WEB_SERVER, bridge="zbr0", links=["bge0"])
    assert "add net physical=bge0 address=192.168.0.10/24 defrouter=192.168.0.1" in words(made)


def test_an_xml_file_says_the_same_things() -> None:
    made = translate(XML, bridge="zbr0")
    assert words(made) == [
        "set autoboot=false",
        "add fs dir=/scratch special=swap type=tmpfs options=nodev",
        "add net anet=zbr0 address=10.1.1.5/24 defrouter=10.1.1.1 mac-address=02:08:20:01:02:03",
        "add rctl name=zone.cpu-shares value=(priv=privileged,limit=20,action=none)",
        "add capped-memory physical=536870912",
        "add dedicated-cpu ncpus=1-4",
    ]
    assert any("verified-boot: has no counterpart" in report for report in made.reports)
    assert any("brand lx" in report for report in made.reports)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("root:x:0:0:root:/root:/bin/sh", "is not a command of a zonecfg export"),
        ("create -b\nadd fs\nset dir=/x\n", "line 2: the fs resource has no end"),
        ("<zone", "Invalid document"),
        ("<zones/>", "begins with <zone>"),
        ('<!DOCTYPE zone [<!ENTITY a "b">]><zone/>', "declares no entities"),
        ("set autoboot\n", "set property=value"),
    ],
)
def test_a_file_that_is_neither_form_is_refused_in_one_line(text: str, complaint: str) -> None:
    with pytest.raises(ZoneError, match=complaint) as caught:
        translate(text, bridge="zbr0")
    assert isinstance(caught.value, ConfigError)
    assert "\n" not in caught.value.text


def test_an_address_without_a_prefix_length_is_completed_and_told() -> None:
    made = translate("add net\nset physical=e0\nset address=10.0.0.5\nend\n", bridge="zbr0")
    assert words(made) == ["add net anet=zbr0 address=10.0.0.5/24"]
    assert "10.0.0.5 has no prefix length, /24 is taken" in made.reports[0]


def test_a_host_name_is_no_address() -> None:
    made = translate("add net\nset physical=e0\nset address=web.example\nend\n", bridge="zbr0")
    assert words(made) == ["add net anet=zbr0"]
    assert "web.example is a name" in made.reports[0]
