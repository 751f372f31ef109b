"""One supervisor per active zone: transitions, worker, zsched, console, adoption, events."""
