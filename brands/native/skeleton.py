"""The root of a new native zone: folders, links to the host's system, and an /etc of its own.

It is written once, by root, into a folder that nobody else can reach, so plain writes are safe here.  What is taken
from the host is public: system account names (never passwords), tables such as /etc/services, certificates of public
authorities, links below /etc that programs in /usr follow.  What may hold a secret or a site's choice (shadow, ssh,
sudoers, profile.d, environment, cron) is not taken.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from zonemgr.brandkit import personal

ETC: Final = Path("/etc")

FOLDERS: Final = (
    ("dev", 0o755),
    ("etc", 0o755),
    ("etc/rc.d", 0o755),
    ("etc/pam.d", 0o755),
    ("etc/profile.d", 0o755),
    ("etc/skel", 0o755),
    ("home", 0o755),
    ("media", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/local", 0o755),
    *(
        (f"usr/local/{name}", 0o755)
        for name in ("bin", "etc", "games", "include", "lib", "libexec", "sbin", "share", "src")
    ),
    ("usr/local/lib/process1", 0o755),  # the mount point of what the brand's init is made of
    ("var", 0o755),
    *(
        (f"var/{name}", 0o755)
        for name in ("cache", "lib", "lib/misc", "local", "log", "opt", "spool", "spool/mail")
    ),
    ("var/tmp", 0o1777),
)
LINKS: Final = (
    ("etc/mtab", "../proc/self/mounts"),
    ("usr/local/man", "share/man"),
    ("usr/local/sbin/halt", "init"),
    ("usr/local/sbin/poweroff", "init"),
    ("usr/local/sbin/reboot", "init"),
    ("usr/local/sbin/shutdown", "init"),
    ("var/lock", "/run/lock"),
    ("var/mail", "spool/mail"),
    ("var/run", "/run"),
)
COPIED: Final = (
    *(
        "adduser.conf",
        "bash.bashrc",
        "debian_version",
        "deluser.conf",
        "ethertypes",
        "gai.conf",
        "host.conf",
        "inputrc",
    ),
    *(
        "ld.so.cache",
        "ld.so.conf",
        "locale.alias",
        "locale.conf",
        "localtime",
        "login.defs",
        "magic",
        "manpath.config",
    ),
    *(
        "mime.types",
        "netconfig",
        "networks",
        "os-release",
        "protocols",
        "redhat-release",
        "rpc",
        "services",
        "shells",
    ),
    *("system-release", "timezone", "xattr.conf", "ssl/openssl.cnf", "default/locale", "default/useradd"),
)
COPIED_FOLDERS: Final = (
    "alternatives",
    "fonts",
    "groff",
    "ld.so.conf.d",
    "perl",
    "ssl/certs",
    "terminfo",
    "vim",
)
CERTIFICATES: Final = (
    "pki/tls/certs/ca-bundle.crt",
    "ssl/ca-bundle.pem",
)  # where other distributions keep the bundle
FILE_MAX_BYTES: Final = 512 << 10
SYSTEM_ID_MAX: Final = 999
NOBODY_ID: Final = 65534

NSSWITCH: Final = """passwd: files
group: files
shadow: files
gshadow: files
hosts: files dns
networks: files
protocols: files
services: files
ethers: files
rpc: files
"""
PROFILE: Final = """# The zone's own profile for login shells.
PATH=/usr/local/bin:/usr/bin:/bin
[ "$(id -u)" -ne 0 ] || PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH LANG="${LANG:-C.UTF-8}"
umask 022
if [ -n "$PS1" ]; then
    PS1="\\$(whoami)@\\$(uname -n):\\$PWD# "
    [ "$(id -u)" -eq 0 ] || PS1="\\$(whoami)@\\$(uname -n):\\$PWD$ "
    [ -z "$BASH" ] || PS1='\\u@\\h:\\w\\$ '
fi
for script in /etc/profile.d/*.sh; do
    [ ! -r "$script" ] || . "$script"
done
unset script
"""
_UNIX: Final = "".join(
    f"{kind:<8} required pam_unix.so\n" for kind in ("auth", "account", "password", "session")
)
_ROOT_MAY: Final = "auth     sufficient pam_rootok.so\n" + _UNIX
PAM: Final = {
    "other": _UNIX,
    **{
        f"common-{kind}": f"{kind:<8} required pam_unix.so\n"
        for kind in ("auth", "account", "password", "session")
    },
    "common-session-noninteractive": "session  required pam_unix.so\n",
    **dict.fromkeys(
        ("chfn", "chpasswd", "chsh", "newusers", "runuser", "runuser-l", "su", "su-l"), _ROOT_MAY
    ),
}


def build(root: Path, hostname: str, system_folders: Iterable[str]) -> None:
    """Make the root, which must not exist.  Raises OSError."""
    os.mkdir(root, 0o755)
    os.chmod(root, 0o755)
    for name, mode in FOLDERS:
        _folder(root / name, mode)
    for name, target in LINKS:
        os.symlink(target, root / name)
    _file(root / "usr/local/sbin/init", "", 0o755)  # the mount point of the brand's init
    _system_folders(root, system_folders)
    _take_public_files(root / "etc")
    _take_accounts(root / "etc")
    _own_files(root / "etc", hostname)
    _file(root / "root/.profile", "[ ! -r ~/.bashrc ] || . ~/.bashrc\n")
    new_identity(root)


def new_identity(root: Path) -> None:
    """What no two machines may share: the machine id; host keys go, their service makes new ones."""
    machine_id = root / "etc/machine-id"
    machine_id.unlink(missing_ok=True)
    _file(machine_id, os.urandom(16).hex() + "\n", 0o444)
    for key in (root / "etc/ssh").glob("ssh_host_*_key*"):
        key.unlink()


def _folder(path: Path, mode: int) -> None:
    path.mkdir()
    path.chmod(mode)  # mkdir's mode passes through the umask


def _file(path: Path, content: str, mode: int = 0o644) -> None:
    with open(path, "x", encoding="utf-8", errors="surrogateescape") as stream:
        stream.write(content)
    path.chmod(mode)


def _system_folders(root: Path, names: Iterable[str]) -> None:
    """/bin and its like: the host's links, or an empty folder for the host's to be mounted on."""
    for name in names:
        on_host = Path("/", name)
        if on_host.is_symlink():
            os.symlink(os.readlink(on_host), root / name)
        elif on_host.is_dir():
            _folder(root / name, 0o755)


# -- from the host -------------------------------------------------------------------------------------------


def _take_public_files(etc: Path) -> None:
    for name in COPIED:
        _take(ETC / name, etc / name)
    for name in COPIED_FOLDERS:
        _take_folder(ETC / name, etc / name)
    bundle = etc / "ssl/certs/ca-certificates.crt"
    for name in CERTIFICATES:
        if not bundle.exists() and (ETC / name).is_file():
            bundle.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ETC / name, bundle)
            _link(f"/etc/{bundle.relative_to(etc)}", etc / name)


def _take_folder(source: Path, target: Path) -> None:
    if source.is_symlink() or not source.is_dir():
        return
    target.mkdir(parents=True)
    for entry in os.scandir(source):
        if entry.is_dir(follow_symlinks=False):
            _take_folder(Path(entry.path), target / entry.name)
        else:
            _take(Path(entry.path), target / entry.name)


def _take(source: Path, target: Path) -> None:
    """Copy one file or link, if it is one that everybody on the host may read."""
    try:
        status = source.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(status.st_mode):
        _take_link(source, target)
    elif stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH and status.st_size <= FILE_MAX_BYTES:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if status.st_mode & 0o111 else 0o644)


def _take_link(source: Path, target: Path) -> None:
    """A link that leads into what the zone sees.  Manual pages of alternatives are not worth their links."""
    destination = os.readlink(source)
    end = os.path.normpath(source.parent / destination)
    if end.startswith(("/usr/", "/etc/")) and not end.startswith("/usr/local/") and "/man/" not in end:
        _link(destination, target)


def _link(destination: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(destination, path)


# -- accounts ------------------------------------------------------------------------------------------------


def _take_accounts(etc: Path) -> None:
    """The host's system accounts, all locked: files in /usr have owners, services their users."""
    groups = list(_system_groups(ETC / "group"))
    users = list(_system_users(ETC / "passwd"))
    _file(etc / "passwd", "".join(":".join(fields) + "\n" for fields in users))
    _file(etc / "group", "".join(":".join(fields) + "\n" for fields in groups))
    _file(etc / "shadow", "".join(f"{fields[0]}:*:::::::\n" for fields in users), 0o640)
    _file(etc / "gshadow", "".join(f"{fields[0]}:*::\n" for fields in groups), 0o640)
    shadow_group = next((int(fields[2]) for fields in groups if fields[0] == "shadow"), 0)
    for name in ("shadow", "gshadow"):
        os.chown(etc / name, 0, shadow_group)
    for name in ("subuid", "subgid"):
        _file(etc / name, "")


def _system_users(path: Path) -> Iterator[list[str]]:
    shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
    yield ["root", "x", "0", "0", "root", "/root", shell]
    for fields in _records(path, 7):
        if fields[0] != "root" and _is_system(fields[2]):
            yield [fields[0], "x", *fields[2:]]


def _system_groups(path: Path) -> Iterator[list[str]]:
    yield ["root", "x", "0", ""]
    for fields in _records(path, 4):
        if fields[0] != "root" and _is_system(fields[2]):
            yield [fields[0], "x", fields[2], ""]  # who is in a group on the host is no business of the zone


def _records(path: Path, count: int) -> Iterator[list[str]]:
    for line in path.read_text(errors="surrogateescape").splitlines():
        fields = line.split(":")
        if len(fields) == count and fields[0][:1] not in ("", "+", "-", "#"):
            yield fields


def _is_system(text: str) -> bool:
    return text.isdecimal() and (0 < int(text) <= SYSTEM_ID_MAX or int(text) == NOBODY_ID)


# -- the zone's own files ------------------------------------------------------------------------------------


def _own_files(etc: Path, hostname: str) -> None:
    _file(etc / "hostname", hostname + "\n")
    _file(etc / "hosts", personal.hosts(hostname))
    _file(etc / "resolv.conf", personal.resolv_conf())
    _file(etc / "nsswitch.conf", NSSWITCH)
    _file(etc / "profile", PROFILE)
    _file(etc / "fstab", "# The zone's file systems are mounted by zonemgr: see its fs resources.\n")
    for name, content in PAM.items():
        _file(etc / "pam.d" / name, content)
