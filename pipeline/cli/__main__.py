"""Make `python -m dhkd.pipeline.cli` equivalent to the command `dhkd`."""

from dhkd.pipeline.cli import main

main()
