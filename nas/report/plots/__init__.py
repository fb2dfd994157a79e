"""Plots as PNG or SVG files."""
