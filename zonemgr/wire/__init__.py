"""The door: varlink over a UNIX socket, for clients, for the single-threaded server, and as interface files."""
