"""LambdaNet: the network as the paper has it (network.py), and faster ways to the same values.

paths.py decides which way a batch goes: `reference`, `portable` (reassociated.py) or `fused` (fused.py).
"""

from lambdanet.models.lambdanet.network import LambdaNet

__all__ = ["LambdaNet"]
