"""Networks whose weights a whole search space shares, and search among them."""
