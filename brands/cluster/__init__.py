"""The cluster brand: native for a cluster framework."""
