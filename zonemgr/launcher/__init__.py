"""The launcher: a process in which everything is loaded, and whose forks are runs of the command line and supervisors.

* ``client``    the programs that people call: hand their work to the launcher, or do it themselves
* ``server``    the launcher's own life: it accepts and forks, and holds no state
* ``fork``      what becomes of a fork: a run of the command line, or a supervisor
* ``likeness``  whether a fork can pass for the caller's own child, and making it so
"""
