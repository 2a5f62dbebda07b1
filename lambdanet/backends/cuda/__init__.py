"""On a GPU: DnCNN's training step by kernels that Triton compiles, and any step as a CUDA graph."""
