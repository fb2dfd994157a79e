"""Levels, codes and bit widths."""
