"""Arrays of kernels: their contract, the one entry to their memory, and workspaces kept for the next call."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK, THREAD = "block", "thread"
MOST = 2  # workspaces kept, each of another kind


@dataclass(frozen=True)
class Array:
    """The contract of an array that kernels take by a pointer.

    Attributes:
        shape: of one.
        each: what there is one for, in rows of one tensor: `BLOCK`, `THREAD`; None: one for all.
        dtype: of its numbers.
    """

    shape: tuple[int, ...]
    each: str | None = None
    dtype: torch.dtype = torch.float32

    def whole(self, counts: dict[str, int]) -> tuple[int, ...]:
        """The tensor's shape for these numbers of blocks and threads."""
        return (counts[self.each], *self.shape) if self.each else self.shape

    def enter(self, name: str, tensor: Tensor, counts: dict[str, int]) -> tuple[int, int, int]:
        """The only entry to a tensor's memory: its address, and bytes to the next block and thread.

        Raises:
            TypeError: the tensor does not keep to the contract; nothing was read or written.
        """
        shape = self.whole(counts)
        if (
            tensor.shape != shape
            or tensor.dtype != self.dtype
            or tensor.device.type != "cpu"
            or not tensor.is_contiguous()
            or tensor.is_neg()
        ):
            raise TypeError(
                f"{name}: a kernel takes {shape} of {self.dtype}, contiguous on the CPU, not "
                f"{tuple(tensor.shape)} of {tensor.dtype} with strides {tensor.stride()} on {tensor.device}"
            )
        step = tensor.element_size() * tensor.stride(0)
        return tensor.data_ptr(), step * (self.each == BLOCK), step * (self.each == THREAD)


def zeros(*shape: int) -> Tensor:
    """An array as kernels take them, whatever torch's usual type and device are."""
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def empty(*shape: int) -> Tensor:
    """The same, of any content."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


class Loan:
    """A workspace, which is free again when nothing refers to this loan any more."""

    def __init__(self, free: dict[Hashable, Any], kind: Hashable, make: Callable[[], Any]) -> None:
        """Take a workspace of this kind out of the free ones, or make it; several threads may at once."""
        self.free, self.kind = free, kind
        self.workspace = free.pop(kind, None)  # in one step: no other thread can take it too
        if self.workspace is None:
            self.workspace = make()

    def __del__(self) -> None:
        if self.workspace is not None:  # it could be made
            self.free[self.kind] = self.workspace
            for old in tuple(self.free)[:-MOST]:
                self.free.pop(old, None)
