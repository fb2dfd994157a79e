"""A Ray cluster, as far as measuring needs it: where devices hang, and who waits for them."""
