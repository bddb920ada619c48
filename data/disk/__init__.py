"""Files: atomic writes, bounded copies, locks."""
