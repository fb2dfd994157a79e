"""`nas train`: recipe, loop, one engine for each Keras backend, checkpoints."""
