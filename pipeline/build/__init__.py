"""The one place where configuration becomes objects: frozen models in, flat arguments out."""
