"""What tests share: probes, the instance, the leak check.  Nothing here replaces the kernel.

* ``probes``    what the host can do; ``@pytest.mark.requires("root", "net")``
* ``instance``  a zonemgr instance of its own in a folder, driven as a user drives it
* ``leaks``     what the host has before and after a test
* ``isolation`` each process that runs tests has mounts and links of its own
* ``waiting``   ``until(...)``: the only loop that polls
* ``plugin``    makes them fixtures
"""
