"""Training objectives: losses, and the decoding that belongs to them."""
