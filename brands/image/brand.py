"""The image brand: a root from a tar archive, a folder, or an OCI image.

A root with an init boots it as process 1.  An image with an application runs that as the child of a minimal process 1,
which reaps, passes signals on and ends with the application: an application in the place of process 1 itself would not
be ended by the signals that it does not handle.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from zonemgr.brandkit import Brand, BrandError, InitProgram, NotCompleted, PlatformMount, UsageError, ZoneInfo

USAGE = "usage: zonemgr install NAME [-t TAG] [--init | --app] SOURCE"


class Image(Brand):
    """See the file's docstring; README.md beside it is for administrators."""

    name = "image"
    summary = "a root from an archive, a folder or an OCI image"

    init_terminal = False
    mounts = (
        PlatformMount("tmpfs", "/run", type="tmpfs", options=("nosuid", "nodev", "mode=755")),
        PlatformMount("tmpfs", "/tmp", type="tmpfs", options=("nosuid", "nodev", "mode=1777")),
    )

    def install(self, zone: ZoneInfo, arguments: Sequence[str]) -> None:
        """Make the root.  The arguments are those of USAGE."""
        import resource

        from zonemgr.brandkit.personal import forget_identity, name_root
        from zonemgr.brandkit.rootdir import RootDir

        from . import sources  # not at the top: the brand is loaded for every transition

        source, tag, wanted = _options(arguments)
        source = sources.located(source, zone.working_folder)
        if os.path.lexists(zone.root):
            raise BrandError("{root} exists already", root=zone.root)
        # This process reads what strangers made: a lie in a header must not cost the host its memory.
        resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))
        try:
            with RootDir.make(zone.root) as root:
                sources.fill(root, source, zone.zonepath, tag=tag, wanted=wanted, say=print)
                name_root(root, zone.config.hostname or zone.zonename)
                forget_identity(root)
        except OSError as error:
            path = error.filename if isinstance(error.filename, str) else zone.root
            raise NotCompleted("{path}: {why}", path=path, why=error.strerror or error) from error
        except MemoryError:
            raise NotCompleted("{source} needs more memory than an image may", source=source) from None

    def uninstall(self, zone: ZoneInfo, arguments: Sequence[str]) -> None:
        """A download that was interrupted lies beside the root."""
        import shutil

        from .sources import DOWNLOAD

        shutil.rmtree(f"{zone.zonepath}/{DOWNLOAD}", ignore_errors=True)

    def init_program(self, zone: ZoneInfo) -> InitProgram:
        """What the root's record says, else the root's init."""
        from zonemgr.brandkit.rootdir import RootDir

        from . import program

        with RootDir(zone.root) as root:
            return program.read(root) or program.system(root) or super().init_program(zone)

    def unconfigure(self, zone: ZoneInfo) -> None:
        """A copy of a zone is another machine."""
        from zonemgr.brandkit.personal import forget_identity
        from zonemgr.brandkit.rootdir import RootDir

        with RootDir(zone.root) as root:
            forget_identity(root)


def _options(arguments: Sequence[str]) -> tuple[str, str, str]:
    """(source, tag, what to run).  Raises UsageError."""
    words, tag, wanted, sources = list(arguments), "", "", []
    while words:
        word = words.pop(0)
        if word == "-t" and words:
            tag = words.pop(0)
        elif word in ("--init", "--app"):
            wanted = word[2:]
        elif word.startswith("-") and word != "-":
            raise UsageError("brand 'image': unknown option '{word}'; {usage}", word=word, usage=USAGE)
        else:
            sources.append(word)
    if len(sources) != 1:
        raise UsageError("brand 'image' needs one SOURCE; {usage}", usage=USAGE)
    return sources[0], tag, wanted
