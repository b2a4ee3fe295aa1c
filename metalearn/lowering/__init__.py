"""The operations of a model in the forms that are fast under per-task weights."""

from metalearn.lowering.product import product
from metalearn.lowering.rewrite import lower

__all__ = ["lower", "product"]
