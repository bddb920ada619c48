"""`share`: a folder with a cache or a run that can be pushed to a hub as it is, without anything of this machine."""
