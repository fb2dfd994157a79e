"""What controllers have in common: history of trials, Gaussian process, policy."""
