"""Files of weights to networks of ours: `files.read(path)`."""
