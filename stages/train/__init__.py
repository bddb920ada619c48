"""Stage two: the one training loop, its objectives and its run folder."""
