"""The busybox brand."""
