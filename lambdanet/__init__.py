"""Image Denoising Using LambdaNetworks, reproduced: noises, models, training and metrics.

Not a dependency in DVC: it holds the version.
"""

__version__ = "0.1.0"
