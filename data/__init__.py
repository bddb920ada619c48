"""What a sample is: views, sources, the cache and the stream that joins them."""
