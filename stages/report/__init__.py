"""What a finished run says: tables and pictures."""
