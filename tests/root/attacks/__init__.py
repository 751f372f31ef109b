"""Attacks from inside a zone, and by a hostile root of a zone.  Each test tries one and looks at the host afterwards.

``inside``   what the attacking programs share: system calls by name, sent into the zone as the text of a program
``conftest`` one booted zone for a whole module, and the bait: a folder of the host that must stay as it was
"""
