"""`lambdanet.load`: the same kind out as in, and the values of the network and of `lambdanet denoise`."""

import functools

import helpers
import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import lambdanet
from lambdanet.data import imagefile
from lambdanet.inference import bundled, trained
from lambdanet.inference.denoise import denoise
from lambdanet.models import load_weights

NAME = "speckle-lambdanet-u4-m7"
FILE = helpers.ROOT / f"weights/paper/{NAME}-0.safetensors"
picture = functools.partial(helpers.noisy_photograph, 30, 21)


@pytest.fixture(scope="module")
def denoiser():
    return lambdanet.load(NAME, device=torch.device("cpu"))


def network(values):
    """What the network makes of (h, w, 3) in [0, 1], clipped: float64."""
    noisy = torch.from_numpy(np.array(values, np.float32)).permute(2, 0, 1)[None]
    return denoise(load_weights(FILE)[0], noisy)[0].clamp(0, 1).permute(1, 2, 0).double().numpy()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, ">f4"])
@pytest.mark.parametrize("channels", [0, 1, 2, 3, 4])
def test_array_gives_an_array_of_its_kind(denoiser, dtype, channels):
    image = picture(channels or 1, np.dtype(dtype).newbyteorder("=")).astype(dtype)
    image = image if channels else image[..., 0]
    before = image.copy()
    output = denoiser(image)
    np.testing.assert_array_equal(image, before)
    assert (output.dtype, output.shape) == (image.dtype, image.shape)
    white = 1 if output.dtype.kind == "f" else np.iinfo(dtype).max
    values = np.atleast_3d(image).astype(float) / white
    colours = 1 if channels < 3 else 3
    if channels in (2, 4):
        np.testing.assert_array_equal(output[..., -1], image[..., -1])
        rgb = imagefile.fill_hidden(values[..., :colours].repeat(3 // colours, -1), values[..., -1])
    else:
        rgb = values.repeat(3 // colours, -1)
    expected = network(rgb)
    expected = expected if colours == 3 else expected.mean(-1, keepdims=True)
    step = {"float16": 1e-3, "uint8": 1 / 255, "uint16": 2 / 65535}.get(output.dtype.name, 1e-6)
    found = np.atleast_3d(output)[..., :colours].astype(float) / white
    assert np.abs(found - expected).max() <= step


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(3,), (1,), (2, 3), (2, 1)])
def test_tensor_gives_a_tensor_of_its_kind(denoiser, dtype, shape):
    values = torch.from_numpy(picture(3, np.float32)).permute(2, 0, 1)[: shape[-1]]
    image = values.expand(*shape, 30, 21)
    image = (255 * image).round().to(dtype) if dtype == torch.uint8 else image.to(dtype)
    output = denoiser(image)
    assert (output.dtype, output.shape, output.device) == (image.dtype, image.shape, image.device)
    one = image if image.ndim == 3 else image[1]
    array = one.permute(1, 2, 0).numpy()
    found = (output if output.ndim == 3 else output[1]).permute(1, 2, 0).numpy()
    assert np.abs(denoiser(array).astype(float) - found).max() <= (1 if dtype == torch.uint8 else 1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_values_are_those_of_the_command(denoiser, tmp_path, dtype, channels):
    image = picture(channels, dtype)
    imagefile.write_png(tmp_path / "in.png", imagefile.from_values(image))
    words = ("denoise", tmp_path / "in.png", "-o", tmp_path / "out.png", "--weights", FILE)
    assert helpers.lambdanet(*words).exit_code == 0
    written = imagefile.to_values(imagefile.read(tmp_path / "out.png"))
    assert written.dtype == dtype
    np.testing.assert_array_equal(denoiser(image), written)
    if dtype == np.uint16:
        assert len(np.unique(written[..., 0] % 257)) > 100  # 16 bits, not 8 on the way


@given(strength=st.floats(0, 1), dtype=st.sampled_from([np.uint8, np.uint16, np.float32]))
@settings(max_examples=20, deadline=None)
def test_strength_scales_what_is_removed(denoiser, strength, dtype):
    image = picture(3, dtype)
    whole, some = denoiser(image), denoiser(image, strength=strength)
    assert some.dtype == image.dtype
    expected = image + strength * (whole.astype(float) - image)
    assert np.abs(some - expected).max() <= (1e-6 if dtype == np.float32 else 0.5)
    np.testing.assert_array_equal(denoiser(image, strength=0), image)
    np.testing.assert_array_equal(denoiser(image, strength=1), whole)


@pytest.mark.parametrize("strength", [0, 0.5, 1])
def test_what_it_gives_of_a_tensor_with_a_gradient_has_none(denoiser, strength):
    image = torch.from_numpy(picture(3, np.float32)).permute(2, 0, 1)
    found = denoiser(image.clone().requires_grad_(), strength=strength)
    assert not found.requires_grad
    assert torch.equal(found, denoiser(image, strength=strength))


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ([[1]], "the image is a list, must be a numpy array or a torch tensor"),
        (np.zeros((4, 4), bool), "the image holds bool, must be uint8, uint16 or float"),
        (np.zeros((1, 4, 4, 3), np.uint8), "the image has the shape (1, 4, 4, 3), must be (h, w) or "),
        (np.zeros((0, 4, 3), np.uint8), "the image has the shape (0, 4, 3)"),
        (np.full((4, 4), 255.0), "values reach 255; floats must be from 0 (black) to 1 (white)"),
        (np.full((4, 4), np.nan), "values reach nan"),
        (torch.zeros(4, 4), "the tensor has the shape (4, 4), must be "),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "the tensor holds torch.int64"),
        (torch.full((3, 4, 4), 128.0), "values reach 128"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_images_are_refused(denoiser, image, says):
    assert says in helpers.refusal(denoiser, image)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_other_strengths_are_refused(denoiser, strength):
    said = helpers.refusal(denoiser, picture(), strength=strength)
    assert said == f"strength is {strength}, must be from 0 to 1"


def test_names_of_denoisers():
    paper = helpers.ROOT / "weights/paper"
    assert bundled.find("gaussian-02") == paper / "gaussian-02-lambdanet-0.safetensors"
    assert bundled.find("speckle-lambdanet") == paper / "speckle-lambdanet-0.safetensors"
    assert bundled.find("speckle-lambdanet-2") == paper / "speckle-lambdanet-2.safetensors"
    assert bundled.find("gaussian-01-lambda-resnet").parent == paper / "ablations"
    assert bundled.find("other.safetensors").name == "other.safetensors"
    said = helpers.refusal(bundled.find, "rain")
    assert said.startswith("there is no denoiser 'rain'; name one of photographs, gaussian-01, ")
    assert said.endswith("file")


@pytest.mark.parametrize("sigma", [15, 50])
def test_photographs_lose_gaussian_noise_of_any_strength(sigma):
    clean = skimage.data.astronaut()[100:228, 100:228]
    noise = np.random.default_rng(0).normal(0, sigma, clean.shape)
    noisy = np.rint((clean + noise).clip(0, 255)).astype(np.uint8)
    output = lambdanet.load("photographs", device="cpu")(noisy)
    before, after = (np.mean((one - clean.astype(float)) ** 2) for one in (noisy, output))
    assert after < 0.3 * before


@pytest.mark.parametrize("noise", bundled.DEFAULTS)
def test_default_of_each_noise_removes_it_from_photographs_of_any_size(noise):
    one = lambdanet.load(noise, device="cpu")
    assert one.description["cell"]["noise"] == noise
    assert sum(p.numel() for p in one.model.parameters()) < 10_000
    assert one.model.halo is not None


def test_file_and_name_give_the_same(denoiser):
    np.testing.assert_array_equal(lambdanet.load(str(FILE))(picture()), denoiser(picture()))
    assert "none.safetensors: no such weights file" in helpers.refusal(lambdanet.load, "none.safetensors")
    assert "device 'abacus' is not available" in helpers.refusal(lambdanet.load, NAME, device="abacus")


def test_import_is_quick_and_three_lines_need_no_pipeline(tmp_path):
    """Neither torch on import, nor on use what only the pipeline or the command line needs."""
    Image.fromarray(picture()).save(tmp_path / "in.jpg")
    code = """
import sys
import lambdanet
assert "torch" not in sys.modules
import numpy as np
from PIL import Image
clean = lambdanet.load("gaussian-01")(np.asarray(Image.open("in.jpg")))
assert (clean.shape, clean.dtype) == ((30, 21, 3), np.uint8)
others = "dvc prefect mlflow pandas skimage scipy pydantic click matplotlib torchvision pooch"
print([name for name in others.split() if name in sys.modules])
"""
    done = helpers.python("-c", code, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(("name", "clips"), [(NAME, True), ("gaussian-01-lambdanet-u4-m7", False)])
def test_floats_are_clipped_first_where_the_noise_was(name, clips):
    denoiser, image = lambdanet.load(name, device="cpu"), 1.6 * picture(3, np.float32) - 0.3
    for kind in (np.asarray, lambda values: torch.from_numpy(values.transpose(2, 0, 1).copy())):
        one, other = (denoiser(kind(values)) for values in (image, image.clip(0, 1)))
        assert np.array_equal(one, other) == clips
    of_no_noise = trained.TrainedDenoiser(denoiser.model, {"model": {}}, denoiser.device)
    assert np.array_equal(of_no_noise(image), denoiser(image)) != clips
