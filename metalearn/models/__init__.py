"""Networks of the field, as `flax.linen` modules."""

from metalearn.models.adapters import AdapterConv4, AdapterMLP
from metalearn.models.clicks import ClickNetwork, VectorGenerator
from metalearn.models.context import ContextMLP, FilmConv4
from metalearn.models.conv4 import Conv4
from metalearn.models.fields import FieldMLP
from metalearn.models.graphs import GCN, SGC
from metalearn.models.interest import InterestNetwork
from metalearn.models.lenet import LeNet
from metalearn.models.maps import ConvMaps
from metalearn.models.mlp import MLP
from metalearn.models.norm import Norm
from metalearn.models.renorm import BatchRenorm
from metalearn.models.residual import ResidualMLP
from metalearn.models.resnet12 import ResNet12
from metalearn.models.tnet import TConv, TDense, TNetConv4, TNetMLP
from metalearn.models.warp import Warp, WarpConv4, WarpMLP

__all__ = [
    "GCN",
    "MLP",
    "SGC",
    "AdapterConv4",
    "AdapterMLP",
    "BatchRenorm",
    "ClickNetwork",
    "ContextMLP",
    "Conv4",
    "ConvMaps",
    "FieldMLP",
    "FilmConv4",
    "InterestNetwork",
    "LeNet",
    "Norm",
    "ResNet12",
    "ResidualMLP",
    "TConv",
    "TDense",
    "TNetConv4",
    "TNetMLP",
    "VectorGenerator",
    "Warp",
    "WarpConv4",
    "WarpMLP",
]
