"""``limitpriv``: the most a zone may do, from Solaris privilege names or Linux capability names to what enforces them.

Most privileges stand for capabilities, which a zone has when the list grants them.  A few stand for *rights*, which
every process has unless the list takes them away; the system call filter enforces those.  The Solaris names that have
no Linux counterpart are accepted, checked and reported as without effect, so that a
configuration brought over from Solaris works.  Nothing here touches a process; ``linux`` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from zonemgr.capnames import CAPABILITIES, RIGHTS
from zonemgr.errors import ConfigError
from zonemgr.model.checks import Refused

ALL_CAPABILITIES: Final = frozenset(CAPABILITIES)

# What reaches past the zone's namespaces, or reads or steers the host's kernel.  sys_boot stays: reboot(2) in a pid
# namespace ends only that.  mknod stays: device nodes are refused by the user namespace and by nodev.  audit_* go
# because systemd asks container managers to withhold them.
WITHHELD: Final = frozenset(
    [
        "sys_module",
        "sys_rawio",
        "sys_time",
        "mac_admin",
        "mac_override",
        "syslog",
        "wake_alarm",
        "block_suspend",
        "audit_control",
        "audit_read",
        "audit_write",
        "bpf",
        "perfmon",
        "sys_pacct",
        "checkpoint_restore",
    ]
)
DEFAULT_CAPABILITIES: Final = ALL_CAPABILITIES - WITHHELD
REQUIRED_CAPABILITIES: Final = frozenset({"setuid", "setgid", "sys_chroot", "kill"})
PROHIBITED_CAPABILITIES: Final = frozenset({"sys_module", "sys_rawio", "mac_admin", "mac_override"})

# Without a user namespace these are powers over the host itself: to mount its devices and remount its folders, to look
# into processes on their way into the zone, to open files by number, to starve it.  A privileged zone has them only
# when its limitpriv names them.
HOST_POWERS: Final = frozenset(
    ["sys_admin", "sys_ptrace", "dac_read_search", "sys_resource", "sys_nice", "linux_immutable"]
)

# No zone could start a program without them (reference, section 7.5).
REQUIRED_RIGHTS: Final = frozenset({"proc_exec", "proc_fork"})

# Solaris privilege -> capabilities.  An empty set: known, and without a Linux counterpart.  Names that exist on both
# sides with different meaning (sys_admin, sys_time, sys_resource, net_rawaccess...) are taken in the Solaris sense
# where that is narrower and the same otherwise.
_SOLARIS_TEXT: Final = """
contract_event
contract_identity
contract_observer
cpc_cpu perfmon
dtrace_kernel bpf
dtrace_proc
dtrace_user
file_chown chown
file_chown_self
file_dac_execute dac_override
file_dac_read dac_read_search
file_dac_search dac_read_search
file_dac_write dac_override
file_downgrade_sl
file_flag_set linux_immutable
file_link_any
file_owner fowner
file_read
file_setid fsetid setfcap
file_upgrade_sl
file_write
graphics_access
graphics_map
ipc_dac_read ipc_owner
ipc_dac_write ipc_owner
ipc_owner ipc_owner
net_access
net_bindmlp
net_icmpaccess net_raw
net_mac_aware
net_mac_implicit
net_observability
net_privaddr net_bind_service
net_rawaccess net_raw
proc_audit audit_write
proc_chroot sys_chroot
proc_clock_highres wake_alarm
proc_exec
proc_fork
proc_info
proc_lock_memory ipc_lock
proc_owner sys_ptrace kill
proc_prioup sys_nice
proc_priocntl sys_nice
proc_secflags
proc_session
proc_setid setuid setgid
proc_taskid
proc_zone
sys_acct sys_pacct
sys_audit audit_control
sys_config
sys_devices mknod
sys_dl_config net_admin
sys_flow_config net_admin
sys_ip_config net_admin
sys_ipc_config
sys_iptun_config net_admin
sys_linkdir
sys_mount sys_admin
sys_net_config net_admin
sys_nfs
sys_ppp_config net_admin
sys_res_bind sys_nice
sys_res_config
sys_share
sys_smb
sys_suser_compat
sys_trans_label
virt_manage
win_colormap
win_config
win_dac_read
win_dac_write
win_devices
win_dga
win_downgrade_sl
win_fontpath
win_mac_read
win_mac_write
win_selection
win_upgrade_sl
xvm_control
"""
SOLARIS: Final[Mapping[str, frozenset[str]]] = {
    words[0]: frozenset(words[1:]) for words in map(str.split, _SOLARIS_TEXT.strip().splitlines())
}
# "basic" is what every Solaris process has; Linux does not count these as capabilities at all.
_GROUPS: Final[Mapping[str, frozenset[str]]] = {"basic": frozenset(), "none": frozenset()}
_BASIC_RIGHTS: Final = frozenset({"net_access", "proc_exec", "proc_fork"})


def _rights(name: str) -> frozenset[str]:
    """The rights a token stands for."""
    if name == "basic":
        return _BASIC_RIGHTS
    return frozenset({name} & set(RIGHTS))


@dataclass(frozen=True, slots=True)
class Privileges:
    """The outcome: capabilities (lower case, without ``cap_``), the tokens that had no effect on Linux, and the
    rights that were taken away.
    """

    capabilities: frozenset[str]
    ignored: tuple[str, ...]
    denied: frozenset[str] = frozenset()


def check_names(limitpriv: str) -> None:
    """Check the syntax and the names only.  Raises Refused with a text that continues "limitpriv ..."."""
    for index, token in enumerate(limitpriv.split(",")):
        name = token.lstrip("!-").lower()
        if name == "default" and (index > 0 or token != "default"):
            raise Refused("allows 'default' as its first word only")
        if name == "zone":
            raise Refused("must not hold 'zone': it would refer to itself")
        if not name:
            raise Refused("holds an empty word")
        if name not in ("default", "all") and _lookup(name) is None:
            raise Refused('holds an unknown privilege "{name}"{hint}', name=name, hint=_alike(name))


def _alike(name: str) -> str:
    from zonemgr.model.schema import did_you_mean

    return did_you_mean(name, [*SOLARIS, *ALL_CAPABILITIES])


def _lookup(name: str) -> frozenset[str] | None:
    """The capabilities a token stands for; None when nobody knows it."""
    bare = name.removeprefix("cap_")
    if bare in ALL_CAPABILITIES:
        return frozenset({bare})
    if name in SOLARIS:
        return SOLARIS[name]
    return _GROUPS.get(name)


def expand(tokens: frozenset[str]) -> frozenset[str]:
    """Capabilities for a brand's set of tokens (Solaris or Linux names).  Raises ConfigError for an unknown one."""
    result: frozenset[str] = frozenset()
    for token in tokens:
        found = _lookup(token.lower())
        if found is None:
            raise ConfigError(
                'unknown privilege "{name}" specified in the brand\'s privilege set', name=token
            )
        result |= found
    return result


def capabilities(
    limitpriv: str, *, default: frozenset[str], required: frozenset[str], prohibited: frozenset[str]
) -> Privileges:
    """Evaluate ``limitpriv`` against the brand's sets (reference, 3.1 and 7.5).  Raises ConfigError.

    An empty ``limitpriv`` is the default set; later words win over earlier ones.
    """
    granted = set(expand(default))
    denied: set[str] = set()
    ignored: list[str] = []
    tokens = [token.strip() for token in limitpriv.split(",")] if limitpriv.strip() else ["default"]
    for index, token in enumerate(tokens):
        if index == 0 and token != "default":
            granted = set()
        if index == 0 and token == "default":
            continue
        _apply(granted, denied, ignored, token)
    _check_sets(granted, expand(required), expand(prohibited))
    for name in sorted(denied & REQUIRED_RIGHTS):
        raise _missing(name)
    return Privileges(frozenset(granted), tuple(ignored), frozenset(denied))


def _apply(granted: set[str], denied: set[str], ignored: list[str], token: str) -> None:
    remove = token[:1] in ("!", "-")
    name = (token[1:] if remove else token).lower()
    found = ALL_CAPABILITIES if name == "all" else _lookup(name)
    rights = _rights(name)
    if found is None:
        raise ConfigError('unknown privilege "{name}" specified in the zone\'s privilege set', name=name)
    if not found and not rights:
        ignored.append(token)
    elif remove:
        granted -= found
        denied |= rights
    else:
        granted |= found
        denied -= rights


def _check_sets(granted: set[str], required: frozenset[str], prohibited: frozenset[str]) -> None:
    for name in sorted(granted & prohibited):
        raise ConfigError('privilege "{name}" is not permitted within the zone\'s privilege set', name=name)
    for name in sorted(required - granted):
        raise _missing(name)


def _missing(name: str) -> ConfigError:
    return ConfigError('required privilege "{name}" is missing from the zone\'s privilege set', name=name)
