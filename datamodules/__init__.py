"""One file per data set, and the seeded loading they share."""
