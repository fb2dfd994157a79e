"""Google's TPU compiler without a TPU, and what is read of its output."""
