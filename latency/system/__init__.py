"""Processes, files and streams of this machine."""
