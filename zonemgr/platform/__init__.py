"""The virtual platform: what a configuration and a brand become on this kernel, and how all of it goes away
again.

``compose`` decides (a plan, as data), ``runner`` acts (ledger first, then the kernel), ``undo`` takes back.
The ops are one file a subject: ``mounting`` (roots and binds), ``filesystems``, ``devices`` (and the console),
``furnishing`` (/run/host, masks), ``network``, ``shift`` (roots whose file system maps no ids).
"""
