"""Examples that methods look at."""
