import importlib.util
import json
import sys

import click
import helpers
import numpy as np
import pytest
import skimage.metrics
import torch
from click.testing import CliRunner
from torch import nn

from benchmarks import denoisers, formulas, gpu, measuring, peers, pictures, recipes, report, sizes
from benchmarks.baselines import variants
from benchmarks.tables import Table
from lambdanet import backends, config
from lambdanet.models.lambdanet import LambdaNet
from lambdanet.training.loop import Pairs

# u, m, d, h, w; in the fourth the window is larger than the image.
SHAPES = [(1, 5, 4, 8, 8), (1, 7, 8, 6, 10), (4, 3, 8, 7, 5), (2, 9, 4, 3, 12), (1, 23, 16, 32, 32)]


def plain(model, x):
    with backends.forced(backends.REFERENCE):
        return model(x)


def settled(**hyperparameters):
    """A LambdaNet in float64 that knows the mean and variance of its features, and no two alike."""
    torch.manual_seed(0)
    return helpers.with_history(LambdaNet(**hyperparameters)).double()


@pytest.mark.parametrize(("u", "m", "d", "h", "w"), SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_formula_computes_the_reference(u, m, d, h, w, training):
    reference = settled(u=u, m=m, d=d).train(training)
    other = formulas.Formula(u=u, m=m, d=d).double().train(training)
    other.load_state_dict(reference.state_dict())
    x = helpers.images(3, 3, h, w, dtype=torch.float64)
    expected, found = plain(reference, x), other(x)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    for output in (expected, found):
        output.square().sum().backward()
    for (name, parameter), same in zip(reference.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(same.grad, parameter.grad, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("name", ["lambda_networks", "timm"])
@pytest.mark.filterwarnings("ignore")  # of the peers
def test_peers_compute_the_reference(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed; it comes with the extra bench")
    reference = settled(m=5)
    peer = getattr(peers, name)(reference).model.double().eval()
    x = helpers.images(2, 3, 8, 6, dtype=torch.float64)
    torch.testing.assert_close(peer(x), plain(reference.eval(), x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["dncnn", "autoencoder"])
def test_baselines_run_what_their_rows_say(name):
    _, noisy = pictures.pairs(4)
    layers, kernels = [], []
    for row, method in variants(name).items():
        if "bf16" not in row:
            (kernels if "kernels" in row else layers).append(method)
    assert [len(layers), len(kernels)] == [2, name == "dncnn"]
    for method in layers:
        given, net = noisy.contiguous(memory_format=method.memory_format), method.model
        with torch.no_grad():
            by_layers = given - net.dncnn(given) if name == "dncnn" else net.decoder(net.encoder(given))
            assert torch.equal(method.output(given), by_layers)
    expected = layers[0].output(noisy)
    for method in kernels:
        assert not torch.equal(method.output(noisy), expected)
        torch.testing.assert_close(method.output(noisy), expected, rtol=0, atol=1e-5)


def test_report_keeps_what_was_measured_when_a_part_fails(tmp_path, monkeypatch):
    def failing(quick):
        yield Table("Half", "About.", [{"method": "b", "ms": 2.0}])
        raise RuntimeError("broken")

    def whole(quick):
        yield Table("Whole", "About.", [{"method": "a", "ms": 1.0 if quick else 3.0}])

    monkeypatch.setattr(report, "PARTS", {"half": failing, "whole": whole})
    monkeypatch.setattr(measuring, "warn_if_busy", lambda: 12.0)
    result = CliRunner().invoke(report.main, ["--quick", "--out", str(tmp_path)])
    assert result.exit_code == 1
    written = json.loads((tmp_path / "benchmarks.json").read_text())
    titles = {name: [table["title"] for table in found] for name, found in written["tables"].items()}
    assert titles == {"half": ["Half"], "whole": ["Whole"]}
    assert written["failed"] == {"half": "RuntimeError: broken"}
    assert written["machine"]["cores"] >= 1
    assert written["versions"]["torch"] == torch.__version__.split("+")[0]
    page = (tmp_path / "benchmarks.md").read_text()
    assert "half failed: RuntimeError: broken" in page
    assert "| a | 1.00 |" in page
    assert "trial run" in page


def test_methods_of_a_gpu_are_compared_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: model)
    clean, noisy = pictures.pairs(2)
    with backends.forced(backends.REFERENCE):  # torch counts nothing in the CPU's kernels
        table = gpu.table("title", gpu.others("autoencoder", "cpu"), clean, noisy, {gpu.MULTIPLIED: 1e12}, 1)
        work = gpu.flops(gpu.others("autoencoder", "cpu")["float32"], clean, noisy)
    rows = {row["method"]: row for row in table.rows}
    assert list(rows)[:3] == ["float32", "float32 as TF32", "bf16, channels_last"]
    assert list(rows)[-1].startswith("ours: ")
    assert rows["float32"]["difference"] == rows["float32 as TF32"]["difference"] == 0
    assert 0 < rows["bf16, channels_last"]["difference"] < 0.1
    share = rows["float32"]["training, share of the bf16 rate"]
    assert work > 1e6
    assert share == pytest.approx(work / 1e12 / (2 * rows["float32"]["training, ms/image"] / 1000))


def test_denoisers_are_compared_on_the_same_noisy_photographs():
    clean = denoisers.images({}, 64, 2)["scikit-image"]
    noisy = [denoisers.add_noise(image, 25, seed=number) for number, image in enumerate(clean)]
    assert np.std(noisy[0].astype(float) - clean[0]) == pytest.approx(25, rel=0.1)
    given = {"flat": lambda image: 0 * image + 1.5, "absent": "the package x is not installed"}
    rows, seconds = denoisers.compare(given, clean, 25)
    assert rows[2] == {"method": "absent", "note": "not run: the package x is not installed"}
    for row, images in ((rows[0], noisy), (rows[1], [0 * image + 255 for image in noisy])):
        pairs = list(zip(clean, images, strict=True))
        psnrs = [skimage.metrics.peak_signal_noise_ratio(*pair, data_range=255) for pair in pairs]
        assert row["PSNR"] == pytest.approx(np.mean(psnrs), abs=1e-4)
    assert len(seconds["flat"]) == 2


def test_psnr_is_of_noise_as_published_and_of_8_bit_outputs(monkeypatch):
    given = {"flat": lambda image: 0 * image + 0.5, "absent": "the package x is not installed"}
    monkeypatch.setattr(denoisers, "methods", lambda sigma: given)
    clean = [np.full((64, 64, 3), value, np.uint8) for value in (255, 127)]
    rows = denoisers.psnr_rows(["noisy", *given], clean, (25, 50))
    assert rows[0]["sigma 25"] == pytest.approx(20 * np.log10(255 / 25), abs=0.1)  # half of it beyond white
    expected = np.mean([20 * np.log10(255 / (255 - 128)), 20 * np.log10(255 / 1)])
    assert rows[1]["sigma 50"] == pytest.approx(expected, abs=1e-6)
    assert rows[2] == {"method": "absent", "note": "not run: the package x is not installed"}
    assert len(set(denoisers.CBSD68.split())) == 68


def test_published_values_stand_beside_ours():
    picture = helpers.encoded(denoisers.images({}, 64, 1)["scikit-image"][0], "JPEG")
    files = {f"val/{name}.jpg": picture for name in denoisers.CBSD68.split()}
    colours, grey, few = denoisers.beside_published(files, quick=True)
    for table, method, value in ((colours, "CBM3D, published", 30.71), (grey, "BM3D, published", 28.57)):
        assert {"method": method, "sigma 25": value} in table.rows
        assert table.rows[0] == {"method": "noisy", "sigma 25": pytest.approx(20.17, abs=0.2)}
    assert [row["method"] for row in few.rows][-1] == "BM3D"


def test_noise_goes_where_jpeg_halved_the_resolution_of_the_colours_too():
    png, full, half = denoisers.stored(denoisers.images({}, 64, 2)["scikit-image"], 25)
    assert png["noisy"] == pytest.approx(20.5, abs=0.3)
    assert min(png["denoised"], full["denoised"], half["denoised"]) > 28
    assert half["noisy"] > full["noisy"] + 2


def test_noise_goes_from_greyscale_photographs_too():
    colours = denoisers.images({}, 64, 2)["scikit-image"]
    clean = [photograph.mean(axis=2, keepdims=True).astype(np.uint8) for photograph in colours]
    noisy, denoised = denoisers.psnr_rows(["noisy", "gaussian-25-photographs-0"], clean, (25,))
    assert noisy["sigma 25"] == pytest.approx(20 * np.log10(255 / 25), abs=0.2)
    assert denoised["sigma 25"] > 27


def test_denoisers_take_the_networks_of_the_nearest_noise_and_name_missing_packages(monkeypatch):
    of_table = [f"{model}-0" for model in ("autoencoder", "lambdanet", "lambdanet-u4-m7")]
    for sigma, noise in ((25, "gaussian-01"), (50, "gaussian-02")):
        wanted = {"gaussian-25-photographs-0", *(f"{noise}-{name}" for name in of_table)}
        assert set(denoisers.networks(sigma / 255)) == wanted
    for name in [*denoisers.PACKAGES, "scico"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert "pip install --no-deps scico" in denoisers.scico(0.1)
    classical = denoisers.classical(0.1)
    assert classical["BM3D"] == "the package bm3d is not installed"
    output = classical["scikit-image: TV, Chambolle"](denoisers.images({}, 64, 1)["scikit-image"][0] / 255)
    assert (output.dtype, output.shape) == (np.float64, (64, 64, 3))


def circular(inputs, outputs):
    """A convolution for which the image continues at its opposite edge."""
    made = nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="circular", bias=False)
    nn.init.normal_(made.weight, std=0.3)
    return made


@torch.no_grad()
def test_scicos_dncnn_is_read_without_scico(tmp_path, monkeypatch):
    msgpack = pytest.importorskip("msgpack")
    torch.manual_seed(0)
    blocks = [(circular(4, 4), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(2)]
    layers = [circular(1, 4), nn.ReLU(), *blocks[0], *blocks[1], circular(4, 1)]
    model = helpers.with_history(nn.Sequential(*layers))

    def packed(tensor):
        return msgpack.ExtType(1, msgpack.packb((tensor.shape, "float32", tensor.numpy().tobytes())))

    def kernel(convolution):
        return {"kernel": convolution.weight.permute(2, 3, 1, 0)}

    weights, statistics = {"conv_start": kernel(layers[0]), "conv_end": kernel(layers[-1])}, {}
    for i, (convolution, norm, _) in enumerate(blocks):
        learned = {"scale": norm.weight, "bias": norm.bias}
        weights[f"ConvBNBlock_{i}"] = {"Conv_0": kernel(convolution), "BatchNorm_0": learned}
        statistics[f"ConvBNBlock_{i}"] = {"BatchNorm_0": {"mean": norm.running_mean, "var": norm.running_var}}
    content = msgpack.packb({"params": weights, "batch_stats": statistics}, default=packed)
    package = {"__init__.py": b"raise AssertionError('it is imported')", "data/flax/dncnn17M.mpk": content}
    helpers.folder(tmp_path / "scico", package)
    monkeypatch.syspath_prepend(tmp_path)

    noisy = helpers.images(3, 1, 9, 7)
    output = denoisers.scico(25 / 255)(noisy[:, 0].permute(1, 2, 0).double().numpy())
    assert model(noisy).std() > 0.1
    np.testing.assert_allclose(output.transpose(2, 0, 1), (noisy - model(noisy))[:, 0], rtol=0, atol=1e-5)


def test_multiply_adds_are_those_of_the_layers():
    pixels = 32 * 32
    expected = pixels * 9 * (3 * 8 + 8 * 8 + 8 * 3)
    assert sizes.multiply_adds({"name": "dncnn", "depth": 3, "width": 8}) == expected
    # queries, keys, values; position lambdas; content lambda; both applied by 4 heads; decoder; skip
    layer = 3 * (64 + 16 + 4) + 16 * 4 * 23**2 + 16 * 4 + 2 * 4 * 16 * 4 + 16 * 8 + 8 * 3 + 16 * 3
    assert sizes.multiply_adds({"name": "lambdanet"}) == pixels * layer


def test_a_trial_of_a_recipe_is_trained_once(tmp_path, monkeypatch):
    clean, how = helpers.patches(16), config.Training(**helpers.TRAIN | {"epochs": 2, "fresh_noise": False})
    noisy = helpers.noisy(clean)
    for name, stored in {"psnr": noisy, "note": np.full_like(noisy, np.nan)}.items():
        pairs = dict.fromkeys(("train", "test"), Pairs(clean, stored))
        words = (tmp_path / f"{name}.json", helpers.DNCNN, helpers.GAUSSIAN, how, pairs)
        row = recipes.trial(*words)
        assert [key for key in ("psnr", "note") if row[key] is not None] == [name]
        with monkeypatch.context() as patched:
            patched.setattr(recipes, "train", None)
            assert recipes.trial(*words) == row
    assert list(tmp_path.glob("**/*.pt")) == []


def test_images_that_are_not_there_are_one_line(tmp_path):
    with pytest.raises(click.ClickException, match=r"clean/test\.npy is missing; make it with `dvc repro`$"):
        pictures.stored(tmp_path / "clean", "test")
