"""Backends: the ways to compute one step, from plain PyTorch to C and CUDA graphs."""
