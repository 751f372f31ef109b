"""zonemgr: Solaris/illumos Zones for Linux.

The layout is the architecture.  Lower rooms never import upper ones (``tests/meta`` proves it)::

    errors, capnames < model | linux < store < wire < brandkit | platform < supervisor | cli < launcher

* ``model``       pure decisions: states, the grid, configuration, plans; no input or output
* ``linux``       thin kernel wrappers; the only room that touches ctypes
* ``store``       files: configuration, index entries, run-time records, ledgers
* ``wire``        the varlink door: framing, client, server, interface files
* ``brandkit``    what brand authors import
* ``platform``    the virtual platform: configuration and brand -> plan -> kernel
* ``supervisor``  one process per active zone: transitions, zsched, console
* ``cli``         what administrators type
* ``launcher``    a warm process whose forks are runs of the command line and supervisors
"""

__version__ = "0.1.0"
