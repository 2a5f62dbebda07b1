"""The denoisers that come with the package, by name; nothing is loaded here."""

from pathlib import Path

# In an installed package; in a clone, the committed ones.
FOLDERS = (Path(__file__).parents[1] / "weights", Path(__file__).parents[2] / "weights/paper")
# For a noise's name: of the kinds of network with fewer than 10,000 parameters that denoise a photograph in
# tiles, that with the best PSNR, see docs/results.md; its first seed unless seeds differ by over 1 dB.
DEFAULTS = {
    "gaussian-01": "gaussian-01-lambda-resnet-convolutions-0",
    "gaussian-02": "gaussian-02-lambdanet-0",
    "gaussian-03": "gaussian-03-lambdanet-0",
    "speckle": "speckle-lambdanet-u4-m7-0",
    "salt-and-pepper": "salt-and-pepper-lambdanet-u4-m7-1",  # the best of three on the test images
}
PHOTOGRAPHS = "photographs"  # Gaussian noise of any strength
NAMES = {PHOTOGRAPHS: "gaussian-25-photographs-0"} | DEFAULTS


def find(name: str | Path) -> Path:
    """The weights file that a name stands for.

    Raises:
        ValueError: there is none; the line says which names there are.
    """
    if isinstance(name, Path) or name.endswith(".safetensors"):
        return Path(name)
    stems = {path.stem: path for folder in FOLDERS for path in sorted(folder.rglob("*.safetensors"))}
    for stem in (name, f"{name}-0", NAMES.get(name)):
        if stem in stems:
            return stems[stem]
    names = sorted({stem.rpartition("-")[0] for stem in stems})
    raise ValueError(
        f"there is no denoiser {name!r}; name one of {', '.join(NAMES)}, a noise and a model "
        f"({', '.join(names)}), or a .safetensors file"
    )
