"""Scores of predictions that need more than one line."""
