"""What commands print for people: a module for each kind of result, and the plain table that they share."""
