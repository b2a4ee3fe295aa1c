"""Few-shot image classification."""

from metalearn.apps.images import colour, embedders, published, recipes, sequences, small
from metalearn.apps.images.features import FewShotFeatures
from metalearn.apps.images.few_shot import FewShotImages
from metalearn.apps.images.mixed import MixedImages

APPLICATIONS = (FewShotImages, MixedImages, FewShotFeatures)
RECIPES = {
    **recipes.RECIPES,
    **embedders.RECIPES,
    **colour.RECIPES,
    **sequences.RECIPES,
    **small.RECIPES,
    **published.RECIPES,
}

__all__ = ["APPLICATIONS", "RECIPES", "FewShotFeatures", "FewShotImages", "MixedImages"]
