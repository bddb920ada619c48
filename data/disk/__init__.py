"""Files on disk: atomic writes, size-limited folders of copies, locks, and CSV tables."""
