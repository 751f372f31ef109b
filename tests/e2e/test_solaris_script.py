"""A script as an administrator of Solaris writes it, run as it is: create, install, boot, enter, clone, destroy."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.kit.instance import CHECKOUT, Instance

SCRIPT = r"""#!/bin/sh
# Provision a zone, use it, copy it, and take everything down again.
set -e
zone=$1; root=$2

state() { zoneadm -z "$1" list -p | cut -d: -f3; }
die() { echo "$0: $*" >&2; exit 1; }

[ "$(zonename)" = global ] || die "run this in the global zone"
zoneadm -z "$zone" list >/dev/null 2>&1 && die "$zone is there already"

zonecfg -z "$zone" -f - <<EOF
# comments are allowed
create -b
set autoboot=false
set bootargs="-m verbose"
add fs
set dir=/mnt
set special=$root
set type=lofs
add options [ro,nosuid]
end
add attr
set name=owner
set type=string
set value="the ops team"
end
add rctl
set name=zone.max-lwps
add value (priv=privileged,limit=900,action=deny)
end
verify
commit
EOF
[ "$(state $zone)" = configured ] || die "not configured"
zonecfg -z $zone info attr name=owner | grep 'value: the ops team' >/dev/null
zonecfg -z $zone "set cpu-shares=20; info cpu-shares" | grep '\[cpu-shares: 20\]' >/dev/null

zoneadm -z $zone verify 2>/dev/null
zoneadm -z $zone install
zoneadm -z $zone boot
[ "$(state $zone)" = running ] || die "not running"
zoneadm list -cp | while IFS=: read id name state path uuid brand ip rest; do
    [ "$name" != "$zone" ] || echo "listed: $state $brand $ip"
done
zoneadm -z $zone boot 2>&1 | grep "zone '$zone': zone is already booted" >/dev/null

echo "pipe: $(echo through | zlogin $zone cat)"
echo "shell: $(zlogin $zone 'cd /etc; echo $LOGNAME $HOME | tr a-z A-Z')"
set +e
zlogin $zone 'exit 3'; echo "status: $?"
zlogin -l no-such-user $zone true 2>/dev/null; echo "unknown user: $?"
zlogin -S $zone 'echo failsafe in $0'
zlogin nowhere true 2>&1
zoneadm -z $zone detach 2>&1; echo "detach while it runs: $?"
zoneadm -z $zone ready -? >/dev/null; echo "help: $?"
zoneadm help >/dev/null; echo "global help: $?"
set -e

zoneadm -z $zone reboot
zoneadm -z $zone halt
[ "$(state $zone)" = installed ] || die "not halted"
zonecfg -z $zone export -f $root/exported
sed '/set zonepath/d; /bootargs/d' $root/exported | zonecfg -z copy -f -
zoneadm -z copy clone -m copy $zone 2>/dev/null
echo "copy: $(state copy)"
for name in copy $zone; do
    zoneadm -z $name uninstall -F
    zonecfg -z $name delete -F
done
[ -z "$(zoneadm list -cn)" ] || die "zones are left"
echo done
"""

EXPECTED = """\
listed: running native excl
pipe: through
shell: ROOT /ROOT
status: 3
unknown user: 1
failsafe in /bin/sh
zlogin: zone 'nowhere' unknown
zoneadm: zone 'web': detach operation is invalid for running zones.
detach while it runs: 1
help: 0
global help: 2
copy: installed
done
"""


@pytest.mark.requires("root", "userns", "net", "cgroup")
def test_a_script_written_for_solaris_runs(instance: Instance, tmp_path: Path) -> None:
    script = tmp_path / "provision"
    script.write_text(SCRIPT)
    done = subprocess.run(
        ["sh", str(script), "web", str(tmp_path)],
        env={**instance.env, "PATH": f"{CHECKOUT}/.venv/bin:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert done.stdout == EXPECTED
    assert instance.states() == {}
