"""What administrators type: one file per family of verbs, and the frame that finds them.

The programs in here ask, print and relay.  They change configuration themselves, but never a zone's kernel state:
that is the supervisor's, behind its door.
"""
