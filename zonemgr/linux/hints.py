"""What an errno means to an operator, and the way out: one table by (call, errno).

``explain`` makes the text of an OSError for a message: what the errno means, what the kernel added, and a
hint in parentheses where the table has one. Deliberately not here: the sentence around it, which names the
thing that failed.
"""

from __future__ import annotations

import os
from errno import (
    E2BIG,
    EACCES,
    EAGAIN,
    EBUSY,
    EDQUOT,
    EINVAL,
    ELOOP,
    EMFILE,
    ENAMETOOLONG,
    ENFILE,
    ENODEV,
    ENOENT,
    ENOEXEC,
    ENOSPC,
    ENOSYS,
    ENOTBLK,
    ENOTDIR,
    EOPNOTSUPP,
    EOVERFLOW,
    EPERM,
    EROFS,
    ESTALE,
    EXDEV,
)

from zonemgr.errors import marked, message

_NOT_ROOT = marked("it needs root on the host, with all capabilities")
_LIMIT_OF_NAMESPACES = marked("a limit of namespaces is reached: raise the user.max_*_namespaces sysctls")

# "" stands for any call.
_HINTS: dict[tuple[str, int], str] = {
    ("open_tree", ENOENT): "create it on the host, or remove the fs resource",
    ("open_tree", EPERM): _NOT_ROOT,
    (
        "open_tree",
        EINVAL,
    ): "it lies on a mount that cannot be copied: one that is unbindable, or of another namespace",
    ("move_mount", ENOENT): "the mount point has been removed meanwhile",
    ("move_mount", ENOTDIR): "a file can only be mounted on a file, and a directory on a directory",
    ("move_mount", EINVAL): "the target is not in the mount namespace it should be in",
    ("move_mount", ELOOP): "the mount would contain itself",
    (
        "mount_setattr",
        EINVAL,
    ): "the file system may not support id-mapped mounts: bind it read-only, or choose another one",
    ("mount_setattr", EPERM): "the mount is locked, or has an id map already",
    ("mount_setattr", EBUSY): "a file on it is open for writing",
    ("fsopen", ENODEV): "the kernel does not know this file system: check its name, or load its module",
    ("fsopen", EPERM): _NOT_ROOT,
    ("fsconfig", EINVAL): "check the options and the type of the file system",
    ("fsconfig", ENOENT): "the device does not exist on the host",
    ("fsconfig", ENOTBLK): "this type of file system needs a block device as special",
    ("fsconfig", EBUSY): "the device is in use, perhaps mounted elsewhere with other options",
    ("fsconfig", EACCES): "the device is read-only: add the option ro",
    ("fsconfig", EROFS): "the device is read-only: add the option ro",
    ("fsmount", EBUSY): "the device is in use",
    ("fsmount", EPERM): _NOT_ROOT,
    ("umount2", EBUSY): "a process still uses it, or something is mounted below it",
    ("umount2", EINVAL): "nothing is mounted there, or the mount is locked",
    ("pivot_root", EBUSY): "the new root is the old one",
    ("pivot_root", EINVAL): "the new root must be a mount point of its own, and not shared",
    ("openat2", ELOOP): "a symbolic link is in the way: nothing below a zone's root may be one here",
    ("openat2", EXDEV): "the path leads out of the zone's root",
    ("openat2", EAGAIN): "the folder is being changed: try again",
    ("clone3", EPERM): _NOT_ROOT,
    ("clone3", ENOSPC): _LIMIT_OF_NAMESPACES,
    (
        "clone3",
        EAGAIN,
    ): "the limit of processes is reached: see pids.max of the cgroup, or max-processes of the zone",
    (
        "clone3",
        EBUSY,
    ): "the cgroup has controllers enabled for its children, so that no process may live in it",
    ("clone3", ENODEV): "the cgroup has been removed meanwhile",
    ("clone3", EOPNOTSUPP): "the cgroup is threaded or not valid: see its cgroup.type",
    ("unshare", EPERM): _NOT_ROOT,
    ("unshare", ENOSPC): _LIMIT_OF_NAMESPACES,
    ("setns", EPERM): _NOT_ROOT,
    ("setns", EINVAL): "the namespace is the caller's own, or the caller has several threads",
    ("uid_map", EPERM): _NOT_ROOT,
    ("gid_map", EPERM): _NOT_ROOT,
    ("uid_map", EINVAL): "the ranges of ids are out of bounds or overlap",
    ("gid_map", EINVAL): "the ranges of ids are out of bounds or overlap",
    ("sethostname", EINVAL): "a host name has at most 64 bytes",
    ("keyctl", EDQUOT): "the quota of keys is used up: see /proc/sys/kernel/keys/maxkeys",
    ("seccomp", EINVAL): "the kernel does not take this filter: remove the cached one",
    ("seccomp", EACCES): "a filter without no_new_privs needs sys_admin in the zone",
    ("bpf", EPERM): _NOT_ROOT,
    ("capset", EPERM): "a capability is asked for that the process does not have",
    ("prctl", EPERM): "it needs the capability setpcap",
    ("inotify_init1", EMFILE): "raise the sysctl fs.inotify.max_user_instances",
    ("inotify_add_watch", ENOSPC): "raise the sysctl fs.inotify.max_user_watches",
    ("open_master_in", ENOSPC): "all ptys are in use: raise the sysctl kernel.pty.max",
    ("TIOCGPTPEER", EINVAL): "the terminal is hung up, or not of this devpts",
    ("TIOCSCTTY", EPERM): "the terminal belongs to another session",
    ("exec", ENOENT): "the command or its interpreter does not exist in the zone",
    ("exec", EACCES): "the command, or a folder above it, is not executable for this user",
    ("exec", ENOEXEC): "it is not a program of this machine, and names no interpreter in its first line",
    ("exec", E2BIG): "the arguments and the environment are too long together",
    ("user", EINVAL): "the id is not one of the 65536 ids of the zone",
    ("cwd", ENOENT): "the folder does not exist in the zone",
    ("enter", ESTALE): "the zone has ended meanwhile",
    ("", ENOSPC): "free some space, or some inodes",
    ("", EDQUOT): "a quota is used up",
    ("", EROFS): "the file system is mounted read-only",
    ("", EMFILE): "too many open files: raise the limit with ulimit -n",
    ("", ENFILE): "too many open files on the host: raise the sysctl fs.file-max",
    ("", ENOSYS): "this kernel is too old: Linux 6.1 or newer is needed",
    ("", EOVERFLOW): "an id of the host has no image in the zone",
    ("", ENAMETOOLONG): "use a shorter name",
}


def hint(call: str, code: int) -> str:
    """The way out for a call's errno, or ""."""
    return _HINTS.get((call, code)) or _HINTS.get(("", code), "")


def _split(error: OSError) -> tuple[str, str]:
    """The call at the head of our own bindings' texts (else ""), and the rest."""
    text = error.strerror or os.strerror(error.errno or 0)
    call, separator, rest = text.partition(": ")
    known = separator and call.replace("_", "").isalnum() and rest.startswith(os.strerror(error.errno or 0))
    return (call, rest) if known else ("", text)


def explain(error: OSError, call: str = "") -> str:
    """An OSError in the operator's words.  ``call`` names the call when the error's own text does not."""
    if error.errno is None:
        return str(error)
    named, text = _split(error)
    if error.filename is not None:
        text = (
            f"{text}: {os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename}"
        )
    advice = hint(named or call, error.errno)
    return f"{text} ({message(advice)})" if advice else text
