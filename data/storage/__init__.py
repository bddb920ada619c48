"""Where objects are kept, those of caches and of runs: a folder, a bucket, a web server, or near copies of them."""
