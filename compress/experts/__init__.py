"""Statistics and criteria of experts."""
