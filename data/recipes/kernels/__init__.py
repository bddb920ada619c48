"""What operations do to pixels, for a whole batch at once, with integer arithmetic alone."""
