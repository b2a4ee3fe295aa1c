"""The inner loop: from a support set to an adapted model."""

from metalearn.inner.descent import Adapted, Descent, descent
from metalearn.inner.differentiate import DIFFERENTIATION, Implicit
from metalearn.inner.norm import NORM_POLICIES, Normaliser, normaliser
from metalearn.inner.posterior import CLASSIFICATION, REGRESSION, Gamma, Posterior
from metalearn.inner.unroll import Unrolled, unroll

__all__ = [
    "CLASSIFICATION",
    "DIFFERENTIATION",
    "NORM_POLICIES",
    "REGRESSION",
    "Adapted",
    "Descent",
    "Gamma",
    "Implicit",
    "Normaliser",
    "Posterior",
    "Unrolled",
    "descent",
    "normaliser",
    "unroll",
]
