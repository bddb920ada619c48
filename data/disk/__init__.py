"""Files on disk: atomic writes, bounded copies, locks, tables."""
