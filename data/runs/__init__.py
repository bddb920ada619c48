"""The folder of a run: written by training, read by reports."""
