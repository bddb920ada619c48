"""Stage one: the teacher runs once over every view and its logits are written to a cache."""
