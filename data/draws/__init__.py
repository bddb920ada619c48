"""Random numbers as functions of their purpose: the generator, schedules of views, orders of samples."""
