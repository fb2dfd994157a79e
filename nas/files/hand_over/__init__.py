"""What goes with a network that is handed over: class names, preprocessing, where it is from."""
