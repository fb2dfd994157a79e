"""`nas profile` and `nas devices`: figures of networks on targets, and their history."""
