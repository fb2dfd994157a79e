"""NVIDIA GPUs: attached ones, and compiling for one."""
