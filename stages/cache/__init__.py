"""Stage one: the teacher runs once over every view, and its signals, e.g. logits, are written to a cache."""
