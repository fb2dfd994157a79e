"""The report of a search as one self-contained page."""
