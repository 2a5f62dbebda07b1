"""LambdaNet and DnCNN on a CPU: Python that writes kernels (codegen.py), which llvmlite compiles."""
