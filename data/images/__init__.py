"""Image sets, in memory or encoded; decoding and cutting of images; checksums of rendered pixels."""
