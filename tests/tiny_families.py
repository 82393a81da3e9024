"""Tiny random models of every family, for images of 32 x 32 pixels in 4 x 4 patches and the phrases of `tiny_batch`."""

from functools import partial

from benchmarks.small_models import BUILDERS, Size, build

# The weights are large: of smaller ones, second-order gradients would drown in rounding.
SIZE = Size(width=16, heads=2, image_size=32, patch_size=8, vocab_size=40, max_tokens=20, std=0.3, eos=2)
TINY = {family: partial(build, family, SIZE) for family in BUILDERS}
