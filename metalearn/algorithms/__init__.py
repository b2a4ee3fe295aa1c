"""Meta-learning algorithms, a folder a family; `registry` says what each one is.

A new learner is four edits: its file, a line in the `__init__` of its family, its record in
the registry, its test file.
"""

from metalearn.algorithms import (
    bayesian,
    closed_form,
    context,
    episodic,
    frozen,
    gradient,
    joint,
    memory,
    metric,
    reward,
)
from metalearn.algorithms.baselines import fine_tune, no_adaptation
from metalearn.algorithms.bayesian import *
from metalearn.algorithms.closed_form import *
from metalearn.algorithms.context import *
from metalearn.algorithms.episodic import *
from metalearn.algorithms.frozen import *
from metalearn.algorithms.gradient import *
from metalearn.algorithms.joint import *
from metalearn.algorithms.memory import *
from metalearn.algorithms.metric import *
from metalearn.algorithms.reward import *

__all__ = ["fine_tune", "no_adaptation"]
__all__ += bayesian.__all__
__all__ += closed_form.__all__
__all__ += context.__all__
__all__ += episodic.__all__
__all__ += frozen.__all__
__all__ += gradient.__all__
__all__ += joint.__all__
__all__ += memory.__all__
__all__ += metric.__all__
__all__ += reward.__all__
