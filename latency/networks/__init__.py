"""What of a Keras network is timed: counts, files, inputs."""
