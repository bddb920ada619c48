"""How a view is drawn: the recipes."""
