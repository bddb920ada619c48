"""The one place where configuration becomes objects: it takes frozen config models and passes on flat arguments."""
