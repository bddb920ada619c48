"""The commands: what each of them runs, the command line, and the one place where configuration becomes objects."""
