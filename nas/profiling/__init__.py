"""Latencies of networks on targets, their history, and devices that are learned from them."""
