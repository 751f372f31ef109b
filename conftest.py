"""Brings the shared fixtures (``instance``, the leak check, ``requires``) to tests/ and to the tests of each brand."""

pytest_plugins = ("tests.kit.plugin",)
