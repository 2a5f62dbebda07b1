import inspect
import io
import json
import pickle
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import images
from safetensors.torch import load_file, save_file

from lambdanet import models
from lambdanet.evaluation.evaluator import evaluate
from lambdanet.inference.denoise import denoise
from lambdanet.models import MODELS, count_parameters, create_model, load_weights, save_weights

SMALL = {  # where the default takes long
    "cnn": {"width": 16},
    "dncnn": {"depth": 4, "width": 8},
    "lambda-resnet": {"width": 8},
    "skip-autoencoder": {"width": 8, "levels": 2},
    "unet": {"width": 4, "levels": 2, "blocks": 1},
}
# Parameters: of LambdaNet by its d, and of others.
D = {16: 9_083, 32: 9_575, 64: 11_327, 128: 17_903, 256: 43_343, 512: 143_375}
SIZES = {"autoencoder": 47_355, "dncnn": 558_336, "cnn": 29_507, "skip-autoencoder": 334_403}
TINY = {"name": "lambdanet", "u": 2, "m": 3, "k": 2, "heads": 2, "d": 4}
FOREIGN, UNFIT = "not one that lambdanet wrote", "the weights do not fit the model they name"


@pytest.mark.parametrize("name", MODELS)
def test_code_is_found_by_the_models_name(name):
    file = Path(models.__file__).parent / f"{name.replace('-', '_')}.py"
    assert file.resolve() == Path(inspect.getfile(MODELS[name])).resolve()
    assert f"class {MODELS[name].__name__}(" in models.source(name)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(33, 31), (5, 3), (1, 40), (16, 32)], ids=str)
def test_denoise_is_the_model_in_evaluation_mode_reflected_at_the_lower_and_right_edge(name, size):
    model, (h, w) = create_model(name, **SMALL.get(name, {})), size
    model(images(4, 3, 16, 16))  # moves the running statistics away from their start
    y, stride = images(2, 3, h, w), getattr(model, "stride", 1)
    output = denoise(model, y)
    assert model.training
    mode = "reflect" if min(h, w) >= stride else "replicate"
    padded = F.pad(y, (0, -w % stride, 0, -h % stride), mode=mode)
    torch.testing.assert_close(output, model.eval()(padded)[..., :h, :w], rtol=1e-4, atol=1e-5)


# Tiles of what LambdaNet learned, with its context, are in tests/inference/test_denoise.py.
# Of each network, what an output pixel sees to the left and the right, and the halo, which is not less.
OF_LAYERS = {"width": 2, "heads": 1, "k": 1, "content": False}
TILES = [
    ("autoencoder", {"width": 2}, (21, 21, 32)),
    ("cnn", {"width": 2}, (13, 13, 16)),
    ("dncnn", {"depth": 5, "width": 4}, (5, 5, 5)),
    ("lambda-resnet", OF_LAYERS | {"blocks": "cclc", "m": 5}, (7, 7, 7)),
    ("lambda-resnet", OF_LAYERS | {"blocks": "ll", "m": 7}, (8, 8, 8)),
    ("lambda-resnet", OF_LAYERS | {"blocks": "ccd", "m": 23}, (5, 5, 5)),
    ("lambda-resnet", OF_LAYERS | {"blocks": "dl", "m": 1}, (3, 3, 3)),
    ("skip-autoencoder", {"width": 2, "levels": 1}, (3, 4, 8)),
    ("skip-autoencoder", {"width": 2, "levels": 2}, (7, 10, 16)),
    ("skip-autoencoder", {"width": 2, "levels": 3}, (15, 22, 32)),
    ("unet", {"width": 2, "levels": 1, "blocks": 2}, (13, 13, 14)),
    ("unet", {"width": 2, "levels": 2, "blocks": 1}, (23, 23, 24)),
    ("unet", {"width": 2, "levels": 3, "blocks": 2}, (91, 91, 96)),
]


@pytest.mark.parametrize(("name", "setting", "reach"), TILES, ids=str)
def test_output_pixels_see_no_further_than_the_halo(name, setting, reach):
    torch.manual_seed(0)
    model = create_model(name, **setting)
    assert (*helpers.reach(model), model.halo) == reach


@pytest.mark.parametrize("size", [(1, 40), (33, 31), (70, 45)], ids=str)
@pytest.mark.parametrize(("name", "setting", "reach"), TILES, ids=str)
def test_tiles_give_what_the_whole_gives(name, setting, reach, size):
    torch.manual_seed(0)
    model = helpers.with_history(create_model(name, **setting))
    with torch.no_grad():
        for parameter in list(model.parameters())[-2:]:  # of the last layer: a spread that shows
            parameter *= 10
    helpers.assert_tiles_fit(model, size)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (8, 8, 3)])
def test_denoise_refuses_other_shapes(shape):
    said = helpers.refusal(denoise, create_model("autoencoder"), torch.zeros(shape))
    assert "must be (n, 3, height, width)" in said


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    model = create_model(name, **SMALL.get(name, {}))
    weights = images(2, 3, 16, 16, seed=1)
    (model(images(2, 3, 16, 16)) * weights).sum().backward()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None, label
        assert 0 < parameter.grad.abs().max() < torch.inf, label


def test_parameter_counts_are_the_documents():
    assert {d: count_parameters(create_model("lambdanet", d=d)) for d in D} == D
    assert count_parameters(create_model("lambdanet", u=4, m=7)) == 3_959
    assert {name: count_parameters(create_model(name)) for name in SIZES} == SIZES


def test_parts_of_lambdanet_do_what_they_say():
    torch.manual_seed(0)
    x = images(2, 3, 32, 32, dtype=torch.float64)
    whole = helpers.with_history(create_model("lambdanet")).double()
    z = whole.encode(x)
    torch.testing.assert_close(whole(x), (whole.conv(z) + whole.shortcut(z)).sigmoid())
    state = whole.state_dict()

    def with_the_same_weights(**changes):
        model = create_model("lambdanet", **changes).double().eval()
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not missing
        assert all(name.startswith("shortcut.") for name in unexpected)
        return model(x)

    torch.testing.assert_close(with_the_same_weights(skip=False), whole.conv(z).sigmoid())
    conv, shortcut = whole.conv, whole.shortcut(z)
    first = conv[0](z)
    inner = conv[4](conv[3](conv[1](first).relu() + first)) + shortcut
    torch.testing.assert_close(with_the_same_weights(inner_skip=True), inner.sigmoid())
    tanh = conv[4](conv[3](conv[1](first).tanh())) + shortcut
    torch.testing.assert_close(with_the_same_weights(activation="tanh"), tanh.sigmoid())


def test_layer_normalisation_is_of_each_image_alone():
    model, x = create_model("lambdanet", norm="layer").train(), images(3, 3, 16, 16)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-5, atol=1e-6)
    values = torch.nn.functional.conv2d(x[:1], model.values[0].weight)
    normal = (values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(model.values(x[:1]), normal, rtol=1e-4, atol=1e-5)


def test_connected_decoder_is_for_one_size():
    model = create_model("lambdanet", decoder="connected", side=16)
    assert model(images(2, 3, 16, 16)).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"^images of 16 x 24: this connected decoder takes 16 x 16 only$"):
        model(images(2, 3, 16, 24))


def test_embedding_std_scales_the_initial_embedding():
    spread = {}
    for std in (1.0, 0.02):
        torch.manual_seed(0)
        spread[std] = create_model("lambdanet", embedding_std=std).embedding
    assert spread[1.0].std().item() == pytest.approx(1, rel=0.03)
    torch.testing.assert_close(spread[0.02], 0.02 * spread[1.0])


def test_residual_dncnn_subtracts_what_the_plain_one_gives():
    torch.manual_seed(0)
    plain = create_model("dncnn", depth=4, width=8)
    residual = create_model("dncnn", depth=4, width=8, residual=True)
    residual.load_state_dict(plain.state_dict())
    y = images(2, 3, 16, 16)
    torch.testing.assert_close(residual(y), y - plain(y))


@pytest.mark.parametrize(("given", "slope"), [({}, 0.2), ({"slope": 0.3}, 0.3)])
def test_cnn_is_the_descriptions_layers(given, slope):
    torch.manual_seed(0)
    model = create_model("cnn", width=3, **given).double()
    y = images(2, 3, 12, 20, dtype=torch.float64)
    weights = [one for one in model.modules() if isinstance(one, torch.nn.Conv2d)]

    def convolved(x, number):
        return F.conv2d(x, weights[number].weight, weights[number].bias, padding=1)

    x = y
    for number in (0, 1):
        x = F.max_pool2d(F.leaky_relu(convolved(x, number), slope), 2)
    for number in (2, 3):
        x = F.interpolate(F.leaky_relu(convolved(x, number), slope), scale_factor=2)
    torch.testing.assert_close(model(y), convolved(x, 4).sigmoid(), rtol=1e-9, atol=1e-12)


def normalised(x, norm):
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def test_skip_autoencoder_is_the_descriptions_layers_with_added_shortcuts():
    """Convolution, pooling, normalisation, ReLU; ReLU of the shortcut and what is transposed."""
    torch.manual_seed(0)
    model = helpers.with_history(create_model("skip-autoencoder", width=2, levels=2)).double()
    y = images(2, 3, 12, 20, dtype=torch.float64) - 0.2
    fine = F.conv2d(y, model.convolutions[0].weight, padding=1)
    half = normalised(F.max_pool2d(fine, 2), model.poolings[0][1]).relu()
    coarse = F.conv2d(half, model.convolutions[1].weight, padding=1)
    bottom = normalised(F.max_pool2d(coarse, 2), model.poolings[1][1]).relu()

    def doubled(x, number):
        deconvolution, norm = model.deconvolutions[number]
        x = F.conv_transpose2d(x, deconvolution.weight, stride=2, padding=1, output_padding=1)
        return normalised(x, norm)

    x = (doubled(bottom, 0) + coarse).relu()
    x = (doubled(x, 1) + fine).relu()
    expected = F.conv_transpose2d(x, model.output.weight, model.output.bias, padding=1)
    torch.testing.assert_close(model(y), expected, rtol=1e-9, atol=1e-12)


WRONG = [
    ("lambdanet", {"u": 0}), ("lambdanet", {"k": 0}), ("lambdanet", {"heads": 0}), ("lambdanet", {"u": 1.5}),
    ("lambdanet", {"d": 3, "heads": 3}), ("lambdanet", {"m": "23"}), ("cnn", {"slope": 0}),
    ("lambdanet", {"embedding_std": np.nan}), ("autoencoder", {"width": None}), ("cnn", {"slope": "0.2"}),
    ("skip-autoencoder", {"width": -1}), ("skip-autoencoder", {"levels": 0}), ("unet", {"blocks": 0}),
    ("skip-autoencoder", {"levels": True}), ("dncnn", {"width": 0}), ("dncnn", {"residual": "false"}),
    ("lambda-resnet", {"blocks": ""}), ("lambda-resnet", {"k": 0}), ("lambda-resnet", {"m": 4}),
    ("unet", {"width": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("config", "message"), [
    ({"name": "resnet"}, f"unknown model 'resnet'; choose one of {', '.join(sorted(MODELS))}"),
    ({"name": "lambdanet", "q": 1}, "model 'lambdanet' has no parameter q; it takes: u, m, k, heads, d, "
     "embedding_std, skip, inner_skip, decoder, side, norm, activation"),
    ({"name": "lambdanet", "activation": "gelu"},
     "activation is 'gelu', must be one of relu, leaky-relu, elu, sigmoid, tanh"),
    ({"name": "lambdanet", "norm": "none"}, "norm is 'none', must be one of batch, layer"),
    ({"name": "lambdanet", "decoder": "linear"},
     "decoder is 'linear', must be one of convolutional, connected"),
    ({"name": "lambdanet", "decoder": "connected", "inner_skip": True},
     "inner_skip is for the convolutional decoder only"),
    ({"name": "lambdanet", "m": 8}, "m is 8, must be odd"),
    ({"name": "lambdanet", "d": 18}, "d is 18, must be even and a multiple of heads (4)"),
    ({"name": "lambdanet", "embedding_std": 0}, "embedding_std is 0, must be above 0"),
    ({"name": "autoencoder", "width": 0}, "width is 0, must be at least 1"),
    ({"name": "cnn", "slope": 1.0}, "slope is 1.0, must be above 0 and below 1"),
    ({"name": "dncnn", "depth": 2}, "depth is 2, must be at least 3"),
    ({"name": "skip-autoencoder", "levels": 4}, "levels is 4, must be from 1 to 3"),
    ({"name": "unet", "levels": 4}, "levels is 4, must be from 1 to 3"),
    ({"name": "lambda-resnet", "blocks": "cxc"}, "blocks is 'cxc', must be letters of c, d and l"),
    ({"name": "lambda-resnet", "heads": 3}, "width is 16, must be a multiple of heads (3)"),
    *(({"name": name, **wrong}, None) for name, wrong in WRONG),
], ids=lambda value: str(value) if isinstance(value, dict) else "")  # fmt: skip
def test_create_model_says_what_is_wrong(config, message):
    said = helpers.refusal(create_model, **config)
    assert said == message or (message is None and [*config][1] in said)


def naive_encode(model, x):
    """Sections 3 and 4.1 of the paper; memory layouts as the released weights."""

    def project(layers, *kinds):
        y = F.conv2d(x, layers[0].weight)
        return (normalised(y, layers[1]) if len(layers) > 1 else y).unflatten(1, kinds)

    k, u, v = model.k, model.u, model.v
    attention = project(model.keys, k, u).flatten(3).softmax(3)
    content = torch.einsum("nkup,nvup->nkv", attention, project(model.values, v, u).flatten(3))
    queries, values = project(model.queries, model.heads, k), project(model.values, u, v)
    return helpers.lambda_layer(queries, content, values, model.embedding[:, :, 0])


@pytest.mark.parametrize(
    ("u", "m", "size"), [(1, 7, (5, 6)), (4, 5, (4, 5)), (1, 3, (4, 9)), (4, 3, (3, 8))], ids=str
)
def test_encode_is_the_papers_formula(u, m, size):
    torch.manual_seed(0)
    model = helpers.with_history(create_model("lambdanet", u=u, m=m, k=3, heads=2, d=8)).double()
    x = images(2, 3, *size, dtype=torch.float64).requires_grad_()
    weights = images(2, 8, *size, seed=1, dtype=torch.float64)
    encoder = [p for name, p in model.named_parameters() if not name.startswith(("conv", "shortcut"))]
    results = []
    for encode in (model.encode, lambda x: naive_encode(model, x)):
        z = encode(x)
        results.append([z, *torch.autograd.grad((z * weights).sum(), [x, *encoder])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


# Pooled PSNR and SSIM on 10,000 (or, for u4_m7 and DnCNN, 500) test images: facts.md, measured.
RELEASED = {
    "Lambda_gaussian_0.1_50": ({"name": "lambdanet"}, 1000, 26.93, 0.15, 0.881),
    "Lambda_gaussian_0.1_50_u4_m7": ({"name": "lambdanet", "u": 4, "m": 7}, 1000, 26.78, 0.15, None),
    "Autoencoder_gaussian_0.1_300": ({"name": "autoencoder"}, 1000, 26.38, 0.15, 0.871),
    "DnCNN_gaussian_0.1_200": ({"name": "dncnn"}, 300, 28.68, 0.3, None),
}


@pytest.mark.parametrize("file", RELEASED)
def test_released_weights_give_their_published_numbers(file, shared_data, real_cifar10):
    config, count, psnr, tolerance, ssim = RELEASED[file]
    state = torch.load(shared_data / f"published-weights/{file}.pth", weights_only=True, map_location="cpu")
    model = create_model(**config)
    model.load_state_dict(state, strict=True)
    clean = np.ascontiguousarray(real_cifar10["test"][:: 10 * (1000 // count)][:count])  # of all classes
    noisy = helpers.noisy(clean)
    scores = evaluate(model, clean, noisy, device=torch.device("cpu"))
    assert scores["psnr"] == pytest.approx(psnr, abs=tolerance)
    if ssim:
        assert scores["ssim"] == pytest.approx(ssim, abs=0.01)
    assert scores["noisy_psnr"] == pytest.approx(20.2, abs=0.3)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_weights(path, create_model(**TINY), {"model": TINY, "training": {"epochs": 1}, "a": 1, "b": 2})
    return path


def test_weights_come_back_equal(tmp_path):
    for config in (TINY, helpers.DNCNN, {"name": "cnn", "width": 2, "slope": 0.1}):
        model = create_model(**config)
        model(images(4, 3, 8, 8))
        save_weights(tmp_path / "w", model, {"model": config, "note": "ü"})
        loaded, description = load_weights(tmp_path / "w")
        assert description == {"model": config, "note": "ü"}
        assert not loaded.training
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
        y = images(2, 3, 8, 8)
        assert torch.equal(loaded(y), model.eval()(y))


def test_weights_are_the_same_bytes_twice(weights, tmp_path):
    model, description = load_weights(weights)
    save_weights(tmp_path / "again", model, dict(reversed(description.items())))
    assert (tmp_path / "again").read_bytes() == weights.read_bytes()


def refusal(path):
    message = helpers.refusal(load_weights, path)
    assert str(path) in message
    return message


BOMB = io.BytesIO()
torch.save({"state": helpers.Bomb("marker")}, BOMB)
NO_WEIGHTS = [b"", b"garbage" * 500, b"\xff" * 8 + b"{}", BOMB.getvalue()]
NO_WEIGHTS.append(pickle.dumps(helpers.Bomb("marker")))


@pytest.mark.parametrize("content", [*NO_WEIGHTS, 200, -1], ids=range(7))
def test_garbage_or_a_part_or_a_pickle_is_no_weights_file(weights, content, monkeypatch):
    """A number: so many of the file's own bytes."""
    monkeypatch.chdir(weights.parent)
    weights.write_bytes(weights.read_bytes()[:content] if isinstance(content, int) else content)
    assert "not a readable safetensors file" in refusal(weights)
    assert not Path("marker").exists()  # nothing was unpickled


@pytest.mark.parametrize(
    ("description", "text"),
    [
        ([], FOREIGN),
        ({"cell": 1}, FOREIGN),
        ({"model": TINY | {"k": 4}}, UNFIT),
        ({"model": {"name": "autoencoder"}}, UNFIT),
        ({"model": TINY | {"m": 4}}, "m is 4, must be odd"),
        ({"model": TINY | {"m": 100_000_001}}, "does not fit into memory"),
        ({"model": {"name": "resnet"}}, "resnet"),
        ({"model": {"name": ["lambdanet"]}}, ""),
        ({"model": 5}, ""),
        *(({"model": TINY, "noise": noise}, "no noise") for noise in (None, "x", {"sigma": 1}, {"name": 5})),
    ],
    ids=str,
)
def test_weights_of_something_else_are_refused(weights, description, text):
    save_file(load_file(weights), weights, metadata={"lambdanet": json.dumps(description)})
    assert text in refusal(weights)


@pytest.mark.parametrize("header", [None, {"other": "{}"}])
def test_foreign_safetensors_are_refused(tmp_path, header):
    save_file({"x": torch.zeros(2)}, tmp_path / "w", metadata=header)
    assert FOREIGN in refusal(tmp_path / "w")
