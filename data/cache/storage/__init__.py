"""Where a cache's objects lie."""
