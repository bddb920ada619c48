"""Reproducible random numbers: the generator, schedules of views, orders of samples."""
