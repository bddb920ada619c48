"""The training stage: the only training loop, its step and the objectives."""
