"""The stages (cache, train, report), which never import each other, and `models`, the networks that all of them use."""
