"""The names of what a process may do: the one list that the model reasons with and the kernel is told by.

Data only, and below all rooms, so that neither ``model`` nor ``linux`` needs the other for it.
"""

from typing import Final

# The kernel's capabilities in the order of their numbers, as capabilities(7) has them without "cap_".
CAPABILITIES: Final = (
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
)

# Solaris privileges that every process has until they are taken away, which here the system call filter does.
RIGHTS: Final = ("net_access", "net_observability", "proc_exec", "proc_fork")
