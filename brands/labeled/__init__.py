"""The labeled brand: native with a mandatory label."""
