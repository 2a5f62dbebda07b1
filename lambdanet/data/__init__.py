"""The images: data sets, noises, files.

Not a dependency in DVC: it says what lies here.
"""
