"""The native brand: the host's programs with a root of its own."""
