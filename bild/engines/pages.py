"""Memory for weights in large pages, where the system lends them.

A forward reads every weight once. In pages of 4 KiB that is thousands of addresses to look up, more
than the processor remembers, so that pages of 2 MiB make it faster. On Linux a region may ask for
them (madvise(2), MADV_HUGEPAGE) and gets them if there are any; elsewhere memory is what it is.
"""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

LARGE_PAGE = 2 * 2**20  # bytes
REGION = 4 * LARGE_PAGE  # that is asked for at a time; what is not written is not taken
ALIGNED = 64  # bytes: a cache line


class LargePages:
    """Copies of tensors, which lie behind one another and stay where they are."""

    def __init__(self) -> None:
        self._regions: list[Tensor] = []
        self._at = self._end = 0  # in the newest region

    def keep(self, tensor: Tensor) -> Tensor:
        """A copy of `tensor`, contiguous and aligned, on the CPU; it lives as long as this does."""
        size = tensor.numel() * tensor.element_size()
        if self._end - self._at < size:
            self._regions.append(region(max(REGION, size)))
            self._at, self._end = 0, len(self._regions[-1])
        place = self._regions[-1][self._at : self._at + size]
        self._at += -(-size // ALIGNED) * ALIGNED
        copy = place.view(tensor.dtype).view(tensor.shape)
        return copy.copy_(tensor)


def region(size: int) -> Tensor:
    """At least `size` bytes, as uint8, whole large pages from the first byte on."""
    size = -(-size // LARGE_PAGE) * LARGE_PAGE
    memory = mmap.mmap(-1, size + LARGE_PAGE, **_PRIVATE)
    with contextlib.suppress(AttributeError, OSError):  # not Linux, or a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    everything = torch.frombuffer(memory, dtype=torch.uint8)  # it keeps the mapping alive
    first = -everything.data_ptr() % LARGE_PAGE
    return everything[first : first + size]


# Only memory that is not shared with other processes can have large pages; Windows has no flags.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
