"""`lambdanet denoise`, with the weights and scores that are in git."""

import functools
import io
import os
import shutil
import subprocess
import sys

import helpers
import numpy as np
import pytest
import skimage.data
import torch
from helpers import pixels_of
from PIL import Image

import lambdanet
from lambdanet.data.images import to_bytes, to_tensor
from lambdanet.data.noise import create_noise
from lambdanet.inference import denoise_files, targets, trained
from lambdanet.inference.denoise import denoise, denoise_photograph
from lambdanet.models import load_weights

FILE = "weights/paper/speckle-lambdanet-u4-m7-0.safetensors"
NOISES = ("gaussian-01", "gaussian-02", "gaussian-03", "speckle", "salt-and-pepper")
ONE = f"{FILE} is one denoiser; leave out --noise and --alias, or name a folder"
PAPER = ("--weights", "weights/paper")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder as after a clone: committed weights and scores, no registry."""
    for name in ("weights", "results"):
        (tmp_path / name).symlink_to(helpers.ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(*words):
    """Those of a run that ends well."""
    done = helpers.lambdanet("denoise", *words)
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def refusal(project, *words):
    """The one line of a run that fails, after a look that it wrote nothing."""
    before = everything(project)
    done = helpers.lambdanet("denoise", *words)
    said = helpers.one_line(done, (1, 2))  # 2: words that make no sense together
    assert everything(project) == before
    return said.removeprefix("error: ").rstrip()


def everything(project):
    return sorted(project.rglob("*")), helpers.contents(project)


def noisy(noise="speckle", side=48, x=150):
    """Part of a photograph with a noise of the project: uint8."""
    clean = skimage.data.chelsea()[100 : 100 + side, x : x + side]
    _, description = load_weights(helpers.ROOT / f"weights/paper/{noise}-lambdanet-0.safetensors")
    generator = torch.Generator().manual_seed(3)
    return to_bytes(create_noise(**description["noise"])(to_tensor(clean[None]), generator))[0]


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def by(weights, pixels):
    """What the network of a weights file makes of 8-bit pixels."""
    return to_bytes(denoise(load_weights(weights)[0], to_tensor(pixels[None])))[0]


def test_denoises_a_photograph_as_the_network_of_the_file_does(project):
    save(project / "in.png", noisy()[:45, :37])
    assert lines("in.png", "-o", "new/out.png", "--weights", FILE) == [f"new/out.png: written, by {FILE}"]
    output = pixels_of(project / "new/out.png")
    np.testing.assert_array_equal(output, by(FILE, noisy()[:45, :37]))
    clean = skimage.data.chelsea()[100:145, 150:187]
    error, before = (np.mean((one - clean.astype(float)) ** 2) for one in (output, noisy()[:45, :37]))
    assert error < 0.4 * before


@pytest.mark.parametrize(
    ("words", "file", "label"),
    [
        (("--noise", "gaussian-03"), "gaussian-03-autoencoder", "autoencoder"),
        (("--noise", "speckle", "--alias", "compact"), "speckle-lambdanet-u4-m7", "lambdanet-u4-m7"),
    ],
)
def test_folder_of_weights_gives_the_one_that_noise_and_alias_name(project, words, file, label):
    """By results/paper/table2.md: champion of gaussian-03 is the auto-encoder, and so on."""
    save(project / "in.png", noisy(side=24))
    os.chdir(helpers.folder(project / "elsewhere"))
    weights = project / "weights/paper"
    (line,) = lines("../in.png", "-o", "../out.png", "--weights", weights, *words)
    chosen = weights / f"{file}-0.safetensors"
    assert line.startswith(f"../out.png: written, by {label} for {words[1]} ({chosen}, ")
    np.testing.assert_array_equal(pixels_of(project / "out.png"), by(chosen, noisy(side=24)))


def test_a_folder_of_weights_needs_nothing_of_the_pipeline(project):
    save(project / "in.png", noisy(side=24))
    without = "import sys; sys.modules.update(dict.fromkeys('dvc prefect mlflow pandas skimage'.split()))"
    words = ["denoise", "in.png", "-o", "out.png", "--weights", "weights/paper", "--noise", "speckle"]
    done = helpers.python("-c", f"{without}; from lambdanet import cli; cli.main({words})", cwd=project)
    assert done.stdout.startswith("out.png: written, by "), done.stderr


def test_blind_takes_the_denoiser_of_the_noise_that_each_image_has(project):
    for noise in NOISES:
        save(project / "in" / f"{noise}.png", noisy(noise, side=96))
    said = lines("in", "-o", "out", "--weights", "weights/paper", "--alias", "autoencoder")
    expected = [f"out/{noise}.png: written, by autoencoder for {noise}" for noise in sorted(NOISES)]
    assert [line.partition(" (")[0] for line in said] == expected
    for noise in NOISES:
        expected = by(f"weights/paper/{noise}-autoencoder-0.safetensors", noisy(noise, side=96))
        np.testing.assert_array_equal(pixels_of(project / "out" / f"{noise}.png"), expected)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--alias", "champion", "--weights", FILE), ONE),
        (("--noise", "rain", *PAPER), "there is no denoiser for the noise 'rain'; there are gaussian-01, "),
        (("--alias", "best", *PAPER), "gaussian-01 has no denoiser 'best'; it has champion, "),
        (("--weights", "in.png"), "in.png: not a readable safetensors file"),
        (("--weights", FILE, "--device", "abacus"), "device 'abacus' is not available"),
        (("--weights", "pictures"), "pictures/trainings.json); name one .safetensors file"),
    ],
)
def test_bad_words_are_one_line(project, words, says):
    save(project / "in.png", noisy(side=12))
    (project / "pictures").mkdir()
    assert says in refusal(project, "in.png", "-o", "out.png", *words)


@pytest.mark.parametrize(
    ("words", "label", "name", "strength"),
    [
        ((), "gaussian-25-photographs-0", "photographs", 1),
        (("--noise", "photographs"), "gaussian-25-photographs-0", "photographs", 1),
        (("--noise", "gaussian-01-lambdanet"), "gaussian-01-lambdanet-0", "gaussian-01-lambdanet", 1),
        (("--noise", "speckle", "--strength", "0.5"), "speckle-lambdanet-u4-m7-0", "speckle", 0.5),
    ],
)
def test_without_weights_it_is_a_denoiser_that_comes_with_the_package(project, words, label, name, strength):
    (project / "params.yaml").symlink_to(helpers.ROOT / "params.yaml")  # of noises, not of denoisers
    save(project / "in.png", noisy(side=24))
    assert lines("in.png", "-o", "out.png", *words) == [f"out.png: written, by {label}"]
    expected = lambdanet.load(name)(pixels_of("in.png"), strength=strength)
    np.testing.assert_array_equal(pixels_of("out.png"), expected)


def test_weights_that_were_not_scored_are_refused(project):
    (project / "weights").unlink()
    save(project / "in.png", noisy(side=12))
    shutil.copytree(helpers.ROOT / "weights/paper", "weights/paper")
    swapped = "weights/paper/speckle-autoencoder-0.safetensors"
    shutil.copy("weights/paper/speckle-lambdanet-0.safetensors", swapped)
    said = refusal(project, "in.png", "-o", "out.png", *PAPER)
    assert said == f"{swapped} is not what was scored; run `dvc repro`"


def test_first_of_several_frames_is_denoised_and_the_line_says_so(project):
    frames = [Image.fromarray(noisy(x=x)) for x in (150, 200, 250)]
    frames[0].save(project / "in.webp", save_all=True, append_images=frames[1:], lossless=True)
    (line,) = lines("in.webp", "-o", "out.png", "--weights", FILE)
    assert line == f"out.png: written, by {FILE} (the first of 3 images in in.webp)"
    np.testing.assert_array_equal(pixels_of(project / "out.png"), by(FILE, noisy()))


@pytest.mark.parametrize(
    "name",
    ["two words.png", "\N{CAT FACE} \u00fc.png", "UPPER.PNG", "-o.png", "x" * 251 + ".png", "%20#?&*[a].png"],
)
def test_names_of_every_kind(project, name):
    save(project / "in" / name, noisy(side=12))
    assert lines("in", "-o", "out", "--weights", FILE)
    target = project / "out" / f"{name[:-4]}.png"
    np.testing.assert_array_equal(pixels_of(target), by(FILE, noisy(side=12)))
    os.chdir(project / "in")
    lines("--weights", project / FILE, "-o", project / "one.png", "--", name)
    assert (project / "one.png").read_bytes() == target.read_bytes()


def test_names_that_are_no_text_are_shown_escaped(project):
    (project / "in").mkdir()
    save(project / "a.png", noisy(side=12))
    try:
        (project / "a.png").rename(project / "in" / os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system takes text only")
    assert lines("in", "-o", "out", "--weights", FILE) == [f"out/caf\\udce9.png: written, by {FILE}"]
    assert os.listdir(os.fsencode(project / "out")) == [b"caf\xe9.png"]


def test_standard_input_and_output_and_a_pipe_which_is_read_once(project):
    pixels, words = noisy(side=12), ["denoise", "-", "-o", "-", "--weights", FILE]
    content = helpers.encoded(pixels, "PNG")
    done = helpers.lambdanet(*words, input=content)
    assert done.stderr == f"standard output: written, by {FILE}\n"
    np.testing.assert_array_equal(pixels_of(io.BytesIO(done.stdout_bytes)), by(FILE, pixels))
    done = helpers.lambdanet(*words, input=b"no image")
    assert (done.exit_code, b"PNG\r" in done.stdout_bytes) == (1, False)
    assert "error: standard input: cannot be read as an image (" in done.output
    read, write = os.pipe()
    os.write(write, content)
    os.close(write)
    lines(f"/dev/fd/{read}", "-o", "out.png", "--weights", FILE)
    os.close(read)
    np.testing.assert_array_equal(pixels_of(project / "out.png"), by(FILE, pixels))


def test_closed_streams_are_as_if_they_were_empty(project):
    pixels = noisy(side=12)
    save(project / "in.png", pixels)
    script = f"{sys.executable} -m lambdanet denoise $0 -o out.png --weights {FILE}"
    environment = os.environ | {"PYTHONPATH": str(helpers.ROOT)}
    run_shell = functools.partial(subprocess.run, capture_output=True, text=True, env=environment)
    done = run_shell(["sh", "-c", f"{script} <&-", "-"])
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: standard input: cannot be read as an image (")
    assert run_shell(["sh", "-c", f"{script} >&- 2>&-", "in.png"]).returncode == 0
    np.testing.assert_array_equal(pixels_of(project / "out.png"), by(FILE, pixels))


def test_files_that_differ_in_case_only_do_not_replace_each_other(project, monkeypatch):
    """Where that is the same name, both targets are one file; here a link makes them so."""
    for name in ("a.png", "b.png"):
        save(project / "in" / name, noisy(side=12))
    planned, _ = targets.plan([project / "in"], project / "out")
    with denoise_files.denoisers(project / FILE, "champion", None) as choices:
        said = denoise_files.run(planned, choices, device="cpu")
        next(said)
        (project / "out/b.png").hardlink_to(project / "out/a.png")
        same = f"{project}/in/b.png would be written to the file of another image; rename one"
        assert next(said) == f"error: {same}"
        assert "1 of 2 files could not be denoised" in helpers.refusal(next, said)


@pytest.mark.parametrize("full", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
@pytest.mark.parametrize("enough", [128, 32])
def test_where_memory_is_short_tiles_are_smaller_or_one_line_says_so(project, monkeypatch, full, enough):
    def limited(model, image, device, *, tile):
        if tile > enough:
            raise full
        return denoise_photograph(model, image, device, tile=tile)

    monkeypatch.setattr(trained, "denoise_photograph", limited)
    save(project / "in.png", noisy(side=140))
    if enough == 128:
        lines("in.png", "-o", "out.png", "--weights", FILE)
        difference = pixels_of(project / "out.png").astype(int) - by(FILE, noisy(side=140))
        assert np.abs(difference).max() <= 1
    else:
        said = refusal(project, "in.png", "-o", "out.png", "--weights", FILE)
        assert said == "in.png: not enough memory to denoise it"
