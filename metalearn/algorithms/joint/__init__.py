"""One model for all tasks, which a second level trains: it does not adapt at test."""

from metalearn.algorithms.joint.metareg import metareg
from metalearn.algorithms.joint.mldg import mldg

__all__ = ["metareg", "mldg"]
