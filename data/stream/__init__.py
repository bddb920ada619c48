"""The stream of training batches: teacher signals, and the join of image, label and signals by key."""
