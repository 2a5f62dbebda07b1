"""Train one denoiser, resumably.

Not a dependency in DVC: it says what lies here.
"""
