"""The virtual platform: what a configuration and a brand become on this kernel, and how all of it goes away
again.

``compose`` decides (a plan, as data), ``runner`` acts (ledger first, then the kernel), ``undo`` takes back; the
rooms between them are one file a subject: ``mounting``, ``network``, ``anchor``.
"""
