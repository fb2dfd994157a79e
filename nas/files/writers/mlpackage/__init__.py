"""Core ML packages: compressed constants of a program."""
