"""What the commands do: who runs what. The command line, and the one place where configuration becomes objects."""
