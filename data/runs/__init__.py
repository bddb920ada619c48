"""The folder of a run, which training writes and reports read."""
