"""What several test files use: tiny data, tiny projects, and the stages as processes."""

import contextlib
import copy
import csv
import io
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
import skimage.data
import torch
import torch.nn.functional as F
import yaml
from click.testing import CliRunner
from PIL import Image
from torch import nn

from lambdanet import cli, files
from lambdanet.data.corruption import corrupt
from lambdanet.data.noise import create_noise
from lambdanet.inference.denoise import denoise_photograph

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 900  # seconds for what takes some on an idle machine: only what hangs takes longer on a busy one

GAUSSIAN = {"name": "gaussian", "sigma": 0.1}
LAMBDANET = {"name": "lambdanet", "u": 1, "m": 5, "k": 4, "heads": 2, "d": 4, "embedding_std": 0.1}
DNCNN = {"name": "dncnn", "depth": 3, "width": 4, "residual": True}
AUTOENCODER = {"name": "autoencoder", "width": 4}

TRAIN = {
    "batch_size": 8, "learning_rate": 0.01, "schedule": "exponential", "decay": 0.99, "warmup": 0.1,
    "weight_decay": 0.00001, "loss": "mse", "fresh_noise": True, "monitored": 4,
}  # fmt: skip

PARAMS = {
    "corrupt": {"seed": 0},
    "noises": {"gaussian-01": GAUSSIAN, "speckle": {"name": "speckle", "variance": 0.1}},
    "models": {"lambdanet": LAMBDANET, "autoencoder": AUTOENCODER, "dncnn": DNCNN},
    "table": {
        "noises": ["gaussian-01", "speckle"],
        "lambdanets": ["lambdanet"],
        "baselines": ["autoencoder", "dncnn"],
    },
    "studies": {"base": {"title": "Base"}, "loss": {"title": "The loss"}},
}
PROFILE = {
    "profile": "tiny", "root": ".", "file": "profile.yaml", "threads": 1, "seeds": [0], "dataset": "patches",
    "datasets": {"patches": {"dataset": "photos", "train": 32, "test": 8}},
    "pairs": {name: {"dataset": "patches", "noise": name} for name in PARAMS["noises"]},
    "train": {name: TRAIN | {"epochs": 2} for name in PARAMS["models"]},
    "levels": [],
    "ablations": {
        "loss-bce": {
            "study": "loss", "model": "lambdanet", "code": "lambdanet", "dataset": "patches",
            "noise": "gaussian-01", "test_noise": "gaussian-01", "seeds": [0],
            "hyperparameters": {key: value for key, value in LAMBDANET.items() if key != "name"},
            "train": TRAIN | {"epochs": 2, "loss": "bce"},
        }
    },
}  # fmt: skip
DATA = "runs/tiny/data/patches"
OUT = "runs/tiny/models/gaussian-01/lambdanet-0"


def changed(params, path, value):
    """A copy of nested dicts with one value set, or removed with `value` of KeyError."""
    result = copy.deepcopy(params)
    *parents, last = path
    place = result
    for key in parents:
        place = place[key]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return result


def patches(count, size=16, seed=0):
    """Patches of a photograph that no training of the project uses: uint8, (count, size, size, 3)."""
    image = skimage.data.astronaut()[::3, ::3]
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, np.array(image.shape[:2]) - size, size=(count, 2))
    return np.stack([image[y : y + size, x : x + size] for y, x in corners])


def noisy_photograph(h, w, channels=3, dtype=np.uint8, sigma=0.1, seed=0):
    """Part of a photograph with noise, (h, w, channels); alpha, of 2 or 4 channels, hides a corner."""
    clean = skimage.data.chelsea()[100 : 100 + h, 150 : 150 + w] / 255
    values = np.clip(clean + sigma * np.random.default_rng(seed).standard_normal(clean.shape), 0, 1)
    values = values if channels >= 3 else values[..., :1]
    if channels in (2, 4):
        alpha = np.linspace(0, 1, h * w).round(1).reshape(h, w, 1)
        values = np.concatenate([values, alpha], -1)
    if np.dtype(dtype).kind == "f":
        return values.astype(dtype)
    return np.rint(np.iinfo(dtype).max * values).astype(dtype)


def noisy(images, config=GAUSSIAN, seed=0):
    return corrupt(images, create_noise(**config), seed)


def images(*shape, seed=0, dtype=torch.float32):
    """As a network takes them: (n, 3, h, w), random in [0, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def read_yaml(path):
    return yaml.safe_load(path.read_text())


def write_yaml(path, raw):
    files.write_text(path, yaml.safe_dump(raw, sort_keys=False))


def edit_yaml(path, keys, value):
    """Set one value of a file, as `changed` does."""
    write_yaml(path, changed(read_yaml(path), keys, value))


def read_csv(path):
    """A dict for each row."""
    return list(csv.DictReader(path.read_text().splitlines()))


def write_config(folder, params=PARAMS, profile=PROFILE):
    """params.yaml and profile.yaml."""
    write_yaml(folder / "params.yaml", params)
    write_yaml(folder / "profile.yaml", profile)


def write_project(folder, params=PARAMS, profile=PROFILE, size=16):
    """A folder as the stages see it: params.yaml, profile.yaml, clean and noisy images, made without them."""
    write_config(folder, params, profile)
    for split, count, seed in (("train", 32, 1), ("test", 8, 2)):
        clean = patches(count, size, seed)
        for name, images in {"clean": clean, "gaussian-01": noisy(clean, seed=seed)}.items():
            files.write_array(folder / DATA / name / f"{split}.npy", images)
    return folder


def train_words(model="lambdanet", seed="0", noise="gaussian-01", profile="profile.yaml"):
    return [profile, noise, model, seed]


def start(stage, words, folder, code=None, parent=None, **environment):
    """Start a stage script as its own process, or `code` or the script `parent` with the same words."""
    script = str(ROOT / "stages" / f"{stage}.py")
    instead = ["-c", code] if code else [str(parent)] if parent else []
    command = [sys.executable, *instead, script]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")}
    return subprocess.Popen(
        [*command, *map(str, words)], cwd=folder, env=inherited | environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(stage, words, folder, code=None, **environment):
    """A stage script run to its end: (exit status, stdout, stderr)."""
    process = start(stage, words, folder, code, **environment)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def python(*words, before=(), **how):
    """Python with these words, as its own process run to its end; how it ended, and its output as text."""
    command = [*before, sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, **how)


def lambdanet(*words, **how):
    """The command with these words, in this process; how it ended, and its output."""
    return CliRunner().invoke(cli.main, list(map(str, words)), **how)


# Code for `start`: makes the words those of the stage; what runs it may have more in front of it.
OF_STAGE = """
import runpy, sys
from pathlib import Path
sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
"""
RUN_STAGE = f'{OF_STAGE}runpy.run_path(sys.argv[0], run_name="__main__")\n'


def wait_for_line(process, text):
    """Read a process's stderr until a line holds `text`; return what was read."""
    seen = ""
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    try:
        for line in process.stderr:
            seen += line
            if text in line:
                return seen
    finally:
        timer.cancel()
    raise AssertionError(f"the process ended before it wrote {text!r}: {seen}")


def wait_until(condition, seconds=PATIENCE):
    """Wait until a function gives what counts as true; return that."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds} seconds"
        time.sleep(0.05)
    return found


def at_once(count, call):
    """What a function gives in each of so many threads."""
    with ThreadPoolExecutor(count) as threads:
        return [one.result() for one in [threads.submit(call) for _ in range(count)]]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def served(address, folder, *words, **environment):
    """A server that is Python with these words, and writes `log`: its process, once it answers."""
    with (folder / "log").open("a") as log:
        how = {"env": os.environ | environment, "stdout": log, "stderr": log, "start_new_session": True}
        process = subprocess.Popen([sys.executable, *words], cwd=folder, **how)

    def answers():
        assert process.poll() is None, (folder / "log").read_text()
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(address, timeout=5).ok
        return False

    try:
        wait_until(answers)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def serving(kind, handler):
    """A server of this machine, in a thread; gives its port."""
    with kind(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def contents(folder):
    """Every file below a folder, by its path: bytes."""
    found = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def encoded(pixels, kind, **options):
    """An image file's bytes, by Pillow."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()


def pixels_of(file):
    """Those of an image file, by Pillow."""
    with Image.open(file) as image:
        return np.asarray(image)


def tar(path, members, mode="w:gz", links=None):
    """An archive of files, name to content, and of symbolic links, name to target."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return path


def folder(path, members=()):
    """The same files in a folder, or an empty one."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in dict(members).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


class By(nn.Module):
    """A network that is a function of the noisy images."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def assert_tiles_fit(model, size):
    """A photograph denoised in small tiles is the one denoised whole."""
    image = np.random.default_rng(0).integers(0, 2**16, (*size, 3), np.uint16)
    cpu = torch.device("cpu")
    whole = denoise_photograph(model, image, cpu, tile=1024)
    tiles = denoise_photograph(model, image, cpu, tile=16)
    assert np.abs(tiles.astype(int) - whole.astype(int)).max() <= 1
    assert whole.std() > 100


class Bomb:
    """What makes the file `marker` when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def one_line(done, statuses=(1,)):
    """The error of a command of click that failed, in one line."""
    assert done.exit_code in statuses, done.output
    assert done.output.startswith("error: ")
    assert done.output.count("\n") == 1
    return done.output


def refusal(call, *words, **options):
    """What a function's error says, which is one line."""
    with pytest.raises(ValueError, match=r"^.*\Z") as caught:
        call(*words, **options)
    return str(caught.value)


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def reach(model):
    """How far output pixels see to each side, whatever the values: (left or up, right or down) in pixels.

    For networks of convolutions. The model is changed for it: no weight is negative, so that nothing
    cancels and ReLU lets all through, and a mean stands for every maximum.
    """
    model.double().eval()
    for parameter in model.parameters():
        parameter.data.abs_()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(parent, name, nn.AvgPool2d(child.kernel_size))
    stride = getattr(model, "stride", 1)
    side, seen = 2 * model.halo + 4 * stride, []
    for at in range(side // 2, side // 2 + stride):
        noisy = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(model(noisy)[0, :, at, at].sum(), noisy)
        pixels = gradient[0].abs().sum(0).nonzero()
        seen.append((at - pixels.min().item(), pixels.max().item() - at))
    return tuple(map(max, zip(*seen, strict=True)))


def lambda_layer(queries, content, values, embedding):
    """Equations 1 to 4 of Bello 2021, a pixel at a time: (n, heads * v, h, w).

    Of queries (n, heads, k, h, w), the content lambda (n, k, v), values (n, u, v, h, w) and the embedding
    of relative positions (k, u, m, m).
    """
    m, (_, _, v, h, w) = embedding.shape[-1], values.shape
    padded = F.pad(values, 4 * (m // 2,))
    z = values.new_empty(*queries.shape[:2], v, h, w)
    for row, column in np.ndindex(h, w):
        window = padded[..., row : row + m, column : column + m]
        position = torch.einsum("kuij,nuvij->nkv", embedding, window)
        z[..., row, column] = queries[..., row, column] @ (content + position)
    return z.flatten(1, 2)


def with_history(model, seed=0):
    """The model in evaluation mode, its batch norms as if they had seen something."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -0.3, 0.3, generator=generator)
    return model.eval()
