"""Configurations of Solaris and illumos zones: what is carried over, and that the rest is told."""

from __future__ import annotations

import re

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

SOLARIS_11 = """\
create -b
set zonepath=/system/zones/%{zonename}
set brand=solaris
set autoboot=true
set autoshutdown=shutdown
set boot-priority=high
set file-mac-profile=fixed-configuration
set ip-type=exclusive
set limitpriv=default,dtrace_user,!sys_time
set fs-allowed=ufs,pcfs
set tenant=blue
set host-compatible=native
add anet
set linkname=net0
set lower-link=auto
set configure-allowed-address=true
set link-protection="mac-nospoof, ip-nospoof"
set allowed-address=192.168.5.10/24,192.168.5.11/24
set defrouter=192.168.5.1
set mac-address=auto
set vlan-id=12
set maxbw=100M
set priority=high
set rxrings=2
add vlan
set vlan-id=7
end
end
add admin
set user=zadmin
set auths=login,manage
end
add dedicated-cpu
set ncpus=2-4
set importance=10
end
add capped-memory
set physical=1g
set swap=2g
set locked=500m
set pagesize-policy=largest-available
end
add security-flags
set lower=ASLR
end
add smf-dependency
set name=nfs
set fmri=svc:/network/nfs/server:default
set grouping=require_all
end
add rootzpool
add storage dev:dsk/c0t1d0
end
add device
set match=/dev/sound/*
set allow-raw-io=true
end
add suspend
set path=/export/suspend
end
"""

SMARTOS = """\
<?xml version="1.0"?>
<!DOCTYPE zone PUBLIC "-//Sun Microsystems Inc//DTD Zones//EN" "file:///usr/share/lib/xml/dtd/zonecfg.dtd.1">
<zone name="7b5981c4" zonepath="/zones/7b5981c4" autoboot="true" brand="joyent-minimal" ip-type="exclusive"
  limitpriv="default,-file_link_any" fs-allowed="-" tenant="x" version="1" debugid="4">
  <attr name="vm-version" type="string" value="1"/>
  <attr name="default-gateway" type="string" value="10.99.99.1"/>
  <dataset name="zones/7b5981c4/data"/>
  <rctl name="zone.zfs-io-priority"><rctl-value priv="privileged" limit="100" action="none"/></rctl>
  <rctl name="zone.max-physical-memory"><rctl-value priv="privileged" limit="268435456" action="deny"/></rctl>
  <rctl name="zone.cpu-cap"><rctl-value priv="privileged" limit="150" action="deny"/></rctl>
  <rctl name="zone.cpu-shares"><rctl-value priv="privileged" limit="100" action="none"/></rctl>
  <rctl name="zone.max-lwps">
    <rctl-value priv="privileged" limit="2000" action="deny"/>
    <rctl-value priv="basic" limit="1000" action="none"/></rctl>
  <mcap physcap="268435456"/>
  <network mac-addr="92:8e:1e:2:3:4" vlan-id="0" global-nic="external" physical="net0">
    <net-attr name="ip" value="10.99.99.7"/>
    <net-attr name="netmask" value="255.255.255.0"/>
    <net-attr name="primary" value="true"/>
  </network>
  <security-flags lower="" default="aslr" upper="all"/>
</zone>
"""

OMNIOS = """\
create -b
set zonepath=/zones/bhyve1
set brand=bhyve
set autoboot=false
set ip-type=exclusive
set scheduling-class=FSS
add net
set allowed-address="10.0.0.112/24"
set physical="vm0"
set global-nic=aggr0
set defrouter="10.0.0.1"
add property (name=mtu,value="9000")
end
add device
set match=/dev/zvol/rdsk/rpool/hdd-bhyve0
end
add attr
set name=bootdisk
set type=string
set value=rpool/hdd-bhyve0
end
add attr
set name=vcpus
set type=string
set value=4
end
add capped-cpu
set ncpus=3.50
end
add dataset
set name=rpool/data
set alias=data
end
"""

SOLARIS_10 = """\
create
set zonepath=/export/home/my-zone
set autoboot=true
set scheduling-class=FSS
set max-lwps=500
set cpu-shares=20
add fs
set dir=/usr/local
set special=/opt/zones/my-zone/local
set type=lofs
end
add fs
set dir=/data
set special=/dev/dsk/c1t2d0s6
set raw=/dev/rdsk/c1t2d0s6
set type=ufs
add options [logging,nodevices]
end
add fs
set dir=/shared
set special=tank/shared
set type=zfs
end
add net
set address=web1.example.com/24
set physical=eri0
end
add net
set address=192.168.0.1
set physical=hme0
set defrouter=192.168.0.254
end
add inherit-pkg-dir
set dir=/opt/sfw
end
add rctl
set name=zone.max-locked-memory
add value (priv=privileged,limit=209715200,action=deny)
end
add rctl
set name=zone.max-swap
add value (priv=privileged,limit=314572800,action=deny)
end
verify
commit
exit
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
        "add net anet=zbr0 linkname=bge0 address=192.168.0.10/24 defrouter=192.168.0.1",
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
        "add net anet=zbr0 linkname=vnic3 address=10.1.1.5/24 defrouter=10.1.1.1 mac-address=02:08:20:01:02:03",
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
    assert words(made) == ["add net anet=zbr0 linkname=e0 address=10.0.0.5/24"]
    assert "10.0.0.5 has no prefix length, /24 is taken" in made.reports[1]


def test_a_host_name_is_no_address() -> None:
    made = translate("add net\nset physical=e0\nset address=web.example\nend\n", bridge="zbr0")
    assert words(made) == ["add net anet=zbr0 linkname=e0"]
    assert "web.example is a name" in made.reports[1]


def test_a_zone_of_solaris_11_keeps_its_link_its_limits_and_its_dependencies() -> None:
    made = translate(SOLARIS_11, bridge="zbr0")
    found = words(made)
    (link,) = [text for text in found if text.startswith("add net")]
    for part in ("anet=zbr0", "address=192.168.5.10/24,192.168.5.11/24", "defrouter=192.168.5.1", "linkname=net0"):
        assert f"{part} " in link.replace("[", "").replace("]", "")
    assert "link-protection=mac-nospoof, ip-nospoof vlan-id=12 maxbw=100M priority=high" in link
    assert "set file-mac-profile=fixed-configuration" in found
    assert "add dedicated-cpu ncpus=2-4 importance=10" in found
    assert "add security-flags lower=aslr" in found
    assert "add smf-dependency name=nfs fmri=svc:/network/nfs/server:default grouping=require_all" in found
    told = " ".join(made.reports)
    for what in ("anet: rxrings", "anet: vlan", "rootzpool", "suspend", "%{zonename}"):
        assert what in told
    assert "vlan-id=7" not in " ".join(found)


def test_a_zone_of_smartos_keeps_the_address_in_its_link_s_attributes() -> None:
    made = translate(SMARTOS, bridge="zbr0")
    (link,) = [text for text in words(made) if text.startswith("add net ")]
    assert "address=10.99.99.7/24" in link
    assert "linkname=net0" in link
    assert "global-nic=external" in link
    assert "vlan-id" not in link
    assert any("net: primary has no counterpart" in report for report in made.reports)


def test_a_zone_of_omnios_keeps_the_properties_of_its_link() -> None:
    made = translate(OMNIOS, bridge="zbr0")
    assert "property=(name=mtu,value=9000)" in next(text for text in words(made) if text.startswith("add net"))
    assert any("brand bhyve: has no counterpart" in report for report in made.reports)


def test_a_zone_of_solaris_10_is_told_what_needs_a_decision() -> None:
    made = translate(SOLARIS_10, bridge="zbr0")
    assert [report.split(",")[0].split(" (")[0] for report in made.reports if "fs " in report] == [
        "line 7: fs /usr/local: writable",
        "line 12: fs /data: file systems of type ufs are not on Linux",
        "line 19: fs /shared: file systems of type zfs are not on Linux",
    ]


SHARED = """\
create
set zonepath=/zones/shared
add net
set address=192.168.0.1/24
set physical=eri0
end
add net
set address=192.168.1.2/24
set physical=eri0
set defrouter=192.168.1.1
end
add net
set address=192.168.2.2/24
set physical=eri1
end
add net
set address=192.168.0.1/24
set physical=eri0
end
exit
"""


def test_several_addresses_of_a_link_are_one_link() -> None:
    made = translate(SHARED, bridge="zbr0")
    assert [text for text in words(made) if text.startswith("add net")] == [
        "add net anet=zbr0 linkname=eri0 address=[192.168.0.1/24,192.168.1.2/24] defrouter=192.168.1.1",
        "add net anet=zbr0 linkname=eri1 address=192.168.2.2/24",
    ]
    joined = [report.split(":")[0] for report in made.reports if "join" in report]
    assert joined == ["line 7", "line 16"]


@pytest.mark.parametrize("text", [SPARSE_WEB_SERVER, XML, SOLARIS_11, SMARTOS, OMNIOS, SOLARIS_10, SHARED])
def test_nothing_is_dropped_silently(text: str) -> None:
    """Every resource and property is in a command or in a report."""
    made = translate(text, bridge="zbr0")
    numbers = {number for number, _ in made.commands}
    numbers |= {int(found[1]) for report in made.reports if (found := re.match(r"line (\d+):", report))}
    beginnings = re.compile(r"(?:add [-\w]+|set (?!brand=native|ip-type=exclusive)[-\w]+=.*)")
    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        if depth == 0 and beginnings.fullmatch(line):
            assert number in numbers, line
        depth += line.startswith("add ") and len(line.split()) == 2
        depth -= line == "end"


def test_every_shape_of_text_is_translated_or_refused_in_one_line() -> None:
    for cut in range(0, len(SOLARIS_11), 7):
        for text in (SOLARIS_11[:cut], SOLARIS_11[cut:], SMARTOS[:cut], SMARTOS[cut:]):
            try:
                translate(text, bridge="zbr0")
            except ZoneError as error:
                assert "\n" not in error.text
