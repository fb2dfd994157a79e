"""Which channels belong together, and what a layer does with them."""
