"""Timing on a shared machine, with reference networks beside."""
