"""The folder of a run: training writes it, reports read it."""
