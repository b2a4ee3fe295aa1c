"""Networks of the field, as `flax.linen` modules."""

from metalearn.models.conv4 import Conv4
from metalearn.models.mlp import MLP
from metalearn.models.norm import Norm
from metalearn.models.resnet12 import ResNet12

__all__ = ["Conv4", "MLP", "Norm", "ResNet12"]
