"""What a network costs: by counting, and as devices time it."""
