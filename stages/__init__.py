"""What happens: the stages (cache, train, report), which never import each other, and the networks that serve them."""
