"""Images: in memory or encoded, how they are decoded, and the witness of what was rendered."""
