"""Images: sets of them, in memory or encoded; how they are decoded and cut; checksums of rendered pixels."""
