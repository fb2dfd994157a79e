"""Hardware-aware neural architecture search and compression for Keras."""

__version__ = "0.1.0"
