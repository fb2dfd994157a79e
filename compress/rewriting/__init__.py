"""Rewriting a graph: twins of layers, and what is known of a compressed network."""
