"""Score denoisers: PSNR, SSIM, by noise level, sample images.

Not a dependency in DVC: it says what lies here.
"""
