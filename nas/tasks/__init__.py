"""Proxy tasks, one file each: `load(...) -> Task`, data on which a candidate shows its quality.

Importing a task costs nothing; `load` reads the data.
"""
