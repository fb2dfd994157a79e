"""`nas scale`: from one network to a family, one network for each latency budget."""
