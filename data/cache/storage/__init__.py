"""Where a cache's objects are kept: a folder, a bucket, a web server, or copies on this machine of remote objects."""
