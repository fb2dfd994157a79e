"""Deployable files of compressed networks: `write(path, model, record, data)` in each module."""

WRITERS = {  # suffix -> module with `write(path, model, record, data) -> Written`
    ".tflite": "nas.files.writers.litert",
    ".mlpackage": "nas.files.writers.coreml",
    ".safetensors": "nas.files.writers.safetensors",
}
SUFFIXES = (".keras", *WRITERS)  # of all files that a network is written to
