"""Files on disk: atomic writes, size-limited folders of copies, locks, CSV tables, and the user's cache folder."""
