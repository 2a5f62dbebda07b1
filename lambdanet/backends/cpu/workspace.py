"""Memory that kernels work in, kept for the next call that needs the same."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

MOST = 2  # kept, each of another kind


def zeros(*shape: int) -> Tensor:
    """An array as kernels take them, whatever torch's usual type and device are."""
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def empty(*shape: int) -> Tensor:
    """The same, of any content."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def address(array: Tensor) -> int:
    """Where an array begins that a kernel may read or write whole.

    Raises:
        TypeError: it does not lie as kernels take it; nothing was read or written.
    """
    if not array.is_contiguous() or array.device.type != "cpu" or array.is_neg():
        raise TypeError(f"an array with the strides {array.stride()} on {array.device} is not for a kernel")
    return array.data_ptr()


class Workspaces(dict):
    """The workspaces that are free, by kind; several threads may ask at once."""

    def borrow(self, kind: Hashable, make: Callable[[], Any]) -> "Loan":
        """A workspace of this kind, made where none is free."""
        return Loan(self, kind, make)


class Loan:
    """A workspace, which is free again when nothing refers to this loan any more."""

    def __init__(self, free: Workspaces, kind: Hashable, make: Callable[[], Any]) -> None:
        """Take a free one, or make it."""
        self.free, self.kind = free, kind
        self.workspace = free.pop(kind, None)  # in one step: no other thread can take it too
        if self.workspace is None:
            self.workspace = make()

    def __del__(self) -> None:
        if self.workspace is not None:  # it could be made
            self.free[self.kind] = self.workspace
            for old in tuple(self.free)[:-MOST]:
                self.free.pop(old, None)
