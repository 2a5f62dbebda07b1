"""Measurements of speed and of accuracy that tests do not make; each prints a table."""
