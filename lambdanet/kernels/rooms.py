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


class Rooms(dict):
    """What nobody works in at the moment, by its kind; several threads may ask at once."""

    def lease(self, kind: Hashable, make: Callable[[], Any]) -> "Lease":
        """A room of this kind, made where none is free."""
        return Lease(self, kind, make)


class Lease:
    """A room, which goes back when nobody can ask for what is in it any more."""

    def __init__(self, rooms: Rooms, kind: Hashable, make: Callable[[], Any]) -> None:
        """Take what fits, or make it."""
        self.rooms, self.kind = rooms, kind
        self.room = rooms.pop(kind, None)  # in one step: no other thread can take it too
        if self.room is None:
            self.room = make()

    def __del__(self) -> None:
        if self.room is not None:  # it could be made
            self.rooms[self.kind] = self.room
            for old in tuple(self.rooms)[:-MOST]:
                self.rooms.pop(old, None)
