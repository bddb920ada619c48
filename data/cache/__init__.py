"""The cache: what it promises (contract), what it is (manifest), and the stores that keep it."""
