"""LiteRT files: written, run and timed."""
