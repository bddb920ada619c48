"""Where a cache's objects are kept: a folder, a bucket, a web server, or copies of their objects on this machine."""
