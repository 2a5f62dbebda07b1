import functools
import io
import pickle
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch

from lambdanet.config import DOWNLOADS, Download
from lambdanet.data import datasets
from lambdanet.data.arrays import load_images
from lambdanet.data.images import to_bytes, to_tensor


def test_prepare_writes_the_same_bytes_twice(tmp_path, monkeypatch):
    images = {"train": helpers.patches(12, seed=1), "test": helpers.patches(5, seed=2)}
    load = functools.partial(datasets.subset_of, lambda _source, _downloads: (images, "nowhere"))
    monkeypatch.setitem(datasets.DATASETS, "sample", load)
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        wanted = Download(dataset="sample", seed=seed, train=7, test=3)
        datasets.prepare(wanted, tmp_path / name, source=None, downloads=tmp_path)
    contents = [helpers.contents(tmp_path / each) for each in "abc"]
    assert contents[0] == contents[1]
    assert sorted(contents[0]) == ["card.json", "test.npy", "train.npy"]
    assert contents[0]["train.npy"] != contents[2]["train.npy"]
    chosen = [patch.tobytes() for patch in load_images(tmp_path / "a", "train")]
    whole = [patch.tobytes() for patch in images["train"]]
    assert len(set(chosen)) == 7
    assert [patch for patch in whole if patch in chosen] == chosen  # in the order of the whole


def test_what_params_knows_is_what_there_is():
    assert set(DOWNLOADS) == set(datasets.DATASETS)
    assert {"cifar10", "cifar10-split", "bsds500"} <= set(datasets.SOURCES) < set(DOWNLOADS)


def saved(array, save=np.save, **options):
    file = io.BytesIO()
    save(file, array, **options)
    return file.getvalue()


IMAGES = np.zeros((4, 8, 8, 3), np.uint8)
NO_IMAGES = {
    "empty": b"",
    "one byte short": saved(IMAGES)[:-1],
    "objects": saved(np.array([helpers.Bomb("marker")], dtype=object), allow_pickle=True),
    "pickle": pickle.dumps(helpers.Bomb("marker")),
    "npz": saved(IMAGES, np.savez),
    "one image": saved(IMAGES[0]),
    "two colours": saved(IMAGES[..., :2]),
    "complex": saved(IMAGES.astype(complex)),
}


@pytest.mark.parametrize("content", NO_IMAGES.values(), ids=NO_IMAGES)
def test_file_that_is_no_array_of_images_is_refused(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.npy").write_bytes(content)
    assert helpers.refusal(load_images, tmp_path, "train").startswith(f"{tmp_path / 'train.npy'} ")
    assert helpers.contents(tmp_path) == {"train.npy": content}  # nothing was unpickled


def test_split_of_cifar10_is_four_fifths_and_the_rest_of_its_training_images(monkeypatch):
    numbered = np.arange(50, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
    images = {"train": numbered, "test": np.full((9, 32, 32, 3), 99, np.uint8)}
    monkeypatch.setattr(datasets.cifar10, "load", lambda source, downloads: (images, "there"))
    parts, origin = datasets.split_of_cifar10(None, Path("unused"))
    assert origin == "there"
    train, test = (set(parts[split][:, 0, 0, 0].tolist()) for split in ("train", "test"))
    assert (len(train), len(test)) == (40, 10)
    assert train | test == set(range(50))


def test_bytes_become_values_between_0_and_1():
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    tensor = to_tensor(images)
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == ((2, 3, 4, 5), torch.float32, True)
    np.testing.assert_array_equal(tensor[1, 2, 3, 4], np.float32(images[1, 3, 4, 2]) / np.float32(255))
    assert to_tensor(np.full((1, 1, 1, 3), 255, np.uint8)).max() == 1
    assert torch.equal(to_tensor(torch.from_numpy(images)), tensor)


def test_bytes_are_clipped_and_rounded():
    values = torch.tensor([-0.5, 1.5, 0.4999 / 255, 0.501 / 255]).reshape(4, 1, 1, 1).expand(4, 3, 1, 1)
    assert to_bytes(values)[:, 0, 0, 0].tolist() == [0, 255, 0, 1]
