"""The inner loop: from a support set to an adapted model."""

from metalearn.inner.clipping import (
    adaptive_grad_clip,
    clip_by_block_rms,
    clip_by_global_norm,
    normalize_by_update_norm,
)
from metalearn.inner.descent import Adapted, Descent, descent
from metalearn.inner.differentiate import DIFFERENTIATION, Implicit
from metalearn.inner.norm import NORM_POLICIES, Normaliser, normaliser
from metalearn.inner.unroll import Unrolled, unroll

__all__ = [
    "DIFFERENTIATION",
    "NORM_POLICIES",
    "Adapted",
    "Descent",
    "Implicit",
    "Normaliser",
    "Unrolled",
    "adaptive_grad_clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "descent",
    "normaliser",
    "normalize_by_update_norm",
    "unroll",
]
