"""Compiled kernels for the CPU: Python that writes them, their machine code on disk, their threads."""
