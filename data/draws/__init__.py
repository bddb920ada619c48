"""Random numbers that are functions of what they are for: the generator, schedules of views, orders of samples."""
