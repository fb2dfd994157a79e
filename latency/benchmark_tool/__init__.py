"""LiteRT's benchmark_model on an attached device."""
