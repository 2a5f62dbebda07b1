"""Denoise the user's own images.

Not a dependency in DVC: it says what lies here.
"""
