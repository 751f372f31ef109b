"""Pure decisions: nothing in here reads, writes, forks or asks the kernel."""
