import numpy as np
import torch

from lambdanet.data.images import to_bytes, to_tensor


def test_bytes_become_values_between_0_and_1():
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    tensor = to_tensor(images)
    assert tensor.shape == (2, 3, 4, 5)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    np.testing.assert_array_equal(tensor[1, 2, 3, 4], np.float32(images[1, 3, 4, 2]) / np.float32(255))
    assert to_tensor(np.full((1, 1, 1, 3), 255, np.uint8)).max() == 1
    assert torch.equal(to_tensor(torch.from_numpy(images)), tensor)


def test_bytes_are_clipped_and_rounded():
    values = torch.tensor([-0.5, 1.5, 0.4999 / 255, 0.501 / 255]).reshape(4, 1, 1, 1).expand(4, 3, 1, 1)
    assert to_bytes(values)[:, 0, 0, 0].tolist() == [0, 255, 0, 1]
