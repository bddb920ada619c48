"""The claims about speed and memory, measured: what `dhkd bench` runs."""
