"""Few-shot classification of short texts."""

from metalearn.apps.text.few_shot import FewShotText
from metalearn.apps.text.recipes import RECIPES

APPLICATIONS = (FewShotText,)

__all__ = ["APPLICATIONS", "RECIPES", "FewShotText"]
