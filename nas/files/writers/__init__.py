"""Deployable files of compressed networks: `write(path, model, record, data)` in each module."""
