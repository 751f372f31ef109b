"""The labeled brand: native, with a mandatory label.

The label is the zone's attr resource ``label``: an SELinux context or the name of an AppArmor profile, whichever of the
two this host has active.  Every process of the zone, a login included, begins its life under it, and no two zones have
the same.  All of that is done by zonemgr for any brand that declares ``mandatory_label``.
"""

from __future__ import annotations

from zonemgr.brandkit import Brand


class Labeled(Brand):
    """See the file's docstring."""

    base = "native"
    name = "labeled"
    summary = "native, each zone under an SELinux or AppArmor label of its own"

    mandatory_label = True
    scratch_mount = True
