"""Measurements of the claims about speed and memory, run by `dhkd bench`."""
