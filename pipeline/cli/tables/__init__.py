"""The text that commands print: a module for each kind of result, and the plain table that all of them use."""
