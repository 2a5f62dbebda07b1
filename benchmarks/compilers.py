"""Why LambdaNet's kernels write vectors themselves: the correlation along y, by numba and by llvmlite.

    pip install numba && python -m benchmarks.compilers

One filter on a block of 16 images of 32 x 32, m = 23, one thread, the least of interleaved runs. numba
gets the same loops over the same arrays, once with the images' loop inside (vectors, sums in memory) and
once outside (sums in registers, no vectors). Triton has no CPU back end, and cannot be compared.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lambdanet import files
from lambdanet.backends.cpu import codegen, lambda_layer

SIZE = lambda_layer.Shape(32, 32, 23, 1)
LANES = 16
REPEATS = 50


def vectors_outside(spectrum: np.ndarray, filters: np.ndarray, product: np.ndarray) -> None:
    """Every image of every row by itself; the sum is a scalar."""
    frequencies, h, m = product.shape[2], product.shape[0], filters.shape[1]
    for f in range(frequencies):
        for y in range(h):
            for d in range(3):
                for i in range(product.shape[4]):
                    real = imaginary = np.float32(0)
                    for row in range(max(0, y - m // 2), min(h, y + m // 2 + 1)):
                        re, im = filters[f, row - y + m // 2]
                        a, b = spectrum[f, row, d, 0, i], spectrum[f, row, d, 1, i]
                        real += re * a - im * b
                        imaginary += re * b + im * a
                    product[y, d, f, 0, i], product[y, d, f, 1, i] = real, imaginary


def vectors_inside(spectrum: np.ndarray, filters: np.ndarray, product: np.ndarray) -> None:
    """All images of a row at once; the sums are in memory."""
    frequencies, h, m = product.shape[2], product.shape[0], filters.shape[1]
    product[:] = 0
    for f in range(frequencies):
        for y in range(h):
            for row in range(max(0, y - m // 2), min(h, y + m // 2 + 1)):
                re, im = filters[f, row - y + m // 2]
                for d in range(3):
                    for i in range(product.shape[4]):
                        a, b = spectrum[f, row, d, 0, i], spectrum[f, row, d, 1, i]
                        product[y, d, f, 0, i] += re * a - im * b
                        product[y, d, f, 1, i] += re * b + im * a


def by_llvmlite() -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    """The kernel's own code for the same sums."""

    def write(k: codegen.Kernel) -> None:
        lambda_layer.write_correlation(k, SIZE, codegen.LONG(0), codegen.LONG(0))

    names = ["spectrum", "filters", "product"]
    request = f"{SIZE} {files.code_of(Path(lambda_layer.__file__).parent)}"
    kernel = codegen.compile_kernels({"correlate": (names, write)}, LANES, request)["correlate"]
    return lambda *arrays: kernel(*(array.ctypes.data for array in arrays))


def main() -> None:
    try:
        import numba
    except ImportError:
        sys.exit("numba is not installed: pip install numba")
    generator = np.random.default_rng(0)
    frequencies, h, m, pad = SIZE.frequencies, SIZE.h, SIZE.m, lambda_layer.PAD
    spectrum = _aligned(generator.random((frequencies, h, 3, 2, LANES)))
    filters = _aligned(generator.random((frequencies, m, 2)))
    padded = _aligned(np.pad(spectrum, [(0, 0), (pad, pad), (0, 0), (0, 0), (0, 0)]))
    wide = _aligned(np.pad(filters, [(0, 0), (1, 1), (0, 0)]))
    compiled = numba.njit(fastmath=True, nogil=True)
    variants = {
        "numba, images outside": (compiled(vectors_outside), spectrum, filters),
        "numba, images inside": (compiled(vectors_inside), spectrum, filters),
        "llvmlite": (by_llvmlite(), padded, wide),
    }
    products = {name: _aligned(np.zeros((h, 3, frequencies, 2, LANES))) for name in variants}
    least = dict.fromkeys(variants, np.inf)
    for _ in range(REPEATS):
        for name, (run, *arrays) in variants.items():
            start = time.perf_counter()
            run(*arrays, products[name])
            least[name] = min(least[name], time.perf_counter() - start)
    for name, seconds in least.items():
        error = abs(products[name] - products["llvmlite"]).max() / abs(products["llvmlite"]).max()
        print(
            f"{name:24} {1e3 * seconds:8.3f} ms  {seconds / least['llvmlite']:6.1f}  differs by {error:.0e}"
        )


def _aligned(values: np.ndarray) -> np.ndarray:
    """float32 at an address that vectors can be loaded from."""
    return torch.from_numpy(np.asarray(values, np.float32)).clone().numpy()


if __name__ == "__main__":
    main()
