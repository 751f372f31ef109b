"""``python -m zonemgr.supervisor``: the program that the CLI starts.  Not for people.

* ``serve NAME``: be the zone's supervisor (reference 4.2): check, leave the caller's session and cgroup, open
  console and door, and tell the ready descriptor;
* ``delegate``: serve the users whom ``admin`` resources name, as long as there are any; ``--stay``: as this very
  process, for a service manager (the program ``zonemgr-delegate``);
* ``plan VERB NAME``, ``fsck``: one-shot work that needs the platform.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run one of the verbs."""
    from zonemgr.supervisor import program

    sys.exit(program.main(sys.argv[1:]))


def delegate() -> None:
    """The program of the unit: serve delegated users, or be ready to, until no zone names any."""
    from zonemgr.supervisor import program

    sys.exit(program.main(["delegate", "--stay", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
