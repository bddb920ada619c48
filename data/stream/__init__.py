"""The stream of training batches: signals, and the join of image, label and signals by key."""
