"""Linux boards behind ssh."""
