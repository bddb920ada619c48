"""Statistics, pictures and the HTML page of finished runs."""
