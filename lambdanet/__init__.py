"""Image Denoising Using LambdaNetworks, reproduced: noises, models, training and metrics."""

__version__ = "0.1.0"
