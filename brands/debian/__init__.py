"""The debian brand."""
