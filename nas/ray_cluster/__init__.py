"""A Ray cluster, as far as a search needs it: placing its workers, several devices at once."""
