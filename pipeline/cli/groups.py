"""The group of commands whose help lists every summary whole, however narrow the terminal."""

import click

WHOLE = 1000  # characters, more than any summary has; click would cut what is longer


class Group(click.Group):
    """A group that lists its commands in the order in which they were added, each with its whole summary."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names of the commands in the order in which they were added."""
        return list(self.commands)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands and their summaries, which are wrapped where they would be too long."""
        rows = [(name, self.commands[name].get_short_help_str(WHOLE)) for name in self.list_commands(context)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)
