"""`python -m dhkd.pipeline.cli` is the command `dhkd`."""

from dhkd.pipeline.cli import main

main()
