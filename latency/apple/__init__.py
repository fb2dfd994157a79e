"""Core ML: packages, and the process that runs them on a Mac."""
