"""Comparisons and analyses of runs, and the page that shows them."""
