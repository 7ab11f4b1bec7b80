"""Weights in large pages: what is kept, where, and what happens without them."""

import mmap

import pytest
import torch

from bild.engines import pages
from bild.engines.pages import ALIGNED, LARGE_PAGE, REGION, LargePages, region

KINDS = [torch.float32, torch.bfloat16, torch.int8, torch.int32]


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_tensors_are_kept_as_they_are(dtype):
    kept = LargePages()
    made = [(torch.randn(n, 3) * 100).to(dtype) for n in (1, 5, 0, 1000)]
    copies = [kept.keep(tensor) for tensor in made]
    # also one that is not contiguous, and one that is larger than a region
    made += [made[-1].T, torch.ones(REGION // made[0].element_size() + 7, dtype=dtype)]
    copies += [kept.keep(tensor) for tensor in made[-2:]]
    for tensor, copy in zip(made, copies, strict=True):
        assert copy.dtype == dtype
        assert copy.is_contiguous()
        assert torch.equal(copy, tensor)
        assert copy.data_ptr() % ALIGNED == 0
        assert copy.numel() == 0 or copy.data_ptr() != tensor.data_ptr()


def test_what_is_kept_does_not_overlap():
    kept = LargePages()
    copies = [kept.keep(torch.full((17,), i, dtype=torch.int32)) for i in range(500)]
    assert [int(copy[0]) for copy in copies] == list(range(500))
    assert all(bool((copy == copy[0]).all()) for copy in copies)


def test_a_region_begins_with_a_large_page():
    memory = region(3)
    assert len(memory) == LARGE_PAGE
    assert memory.data_ptr() % LARGE_PAGE == 0
    memory.fill_(7)
    assert int(memory.sum(dtype=torch.int64)) == 7 * LARGE_PAGE


def test_the_system_is_asked_for_large_pages(monkeypatch):
    asked = []

    class Asked(mmap.mmap):
        def madvise(self, advice):
            asked.append((advice, len(self)))

    monkeypatch.setattr(pages.mmap, "mmap", Asked)
    monkeypatch.setattr(pages.mmap, "MADV_HUGEPAGE", 14, raising=False)  # Linux's
    region(3 * LARGE_PAGE)
    assert asked == [(14, 4 * LARGE_PAGE)]


def test_without_large_pages_there_is_memory_all_the_same(monkeypatch):
    class NoLargePages(mmap.mmap):
        def madvise(self, *_):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(pages.mmap, "mmap", NoLargePages)
    memory = region(5)
    assert bool((memory == 0).all())
