"""The tests.  ``meta`` polices the house, ``unit`` is pure, ``userns`` and ``root`` ask the real kernel,
``e2e`` types commands.
"""
