"""Networks in files: what is opened, how it is flattened, what is written."""
