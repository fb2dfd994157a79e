"""Networks whose weights a whole search space shares: how each family's are laid out."""
