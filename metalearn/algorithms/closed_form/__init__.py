"""Learners whose classifier is the solution of a convex problem on the support set."""

from metalearn.algorithms.closed_form.kernel import dkt
from metalearn.algorithms.closed_form.logistic import lr_d2
from metalearn.algorithms.closed_form.metaoptnet import metaoptnet
from metalearn.algorithms.closed_form.ridge import metaoptnet_ridge, r2d2

__all__ = [
    "dkt",
    "lr_d2",
    "metaoptnet",
    "metaoptnet_ridge",
    "r2d2",
]
