"""Files: configuration, index entries, run-time records, ledgers.  Every write is by rename."""
