"""Networks compiled and timed with JAX in a process of its own."""
