"""From runs to comparisons, analyses, and the page that shows them."""
