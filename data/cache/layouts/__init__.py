"""How a cache's blocks are laid out as objects."""
