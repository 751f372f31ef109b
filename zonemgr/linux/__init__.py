"""Thin wrappers of the kernel's interfaces, one file per subject; the only layer that knows ctypes.

Nothing here knows what a zone is.  Each call checks its own result and raises the real OSError with the call's
name in its text (``hints.explain`` makes the operator's words of it).
"""
