"""Classification in a domain that training has not seen."""

from metalearn.apps.domains.recipes import RECIPES
from metalearn.apps.domains.unseen import UnseenDomain

APPLICATIONS = (UnseenDomain,)

__all__ = ["APPLICATIONS", "RECIPES", "UnseenDomain"]
