"""The Python interface: objects and keyword arguments become an experiment, which functions of `pipeline` carry out."""
