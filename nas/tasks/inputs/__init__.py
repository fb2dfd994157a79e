"""What becomes of examples before a network sees them, and where they lie meanwhile."""
