"""The image brand."""
