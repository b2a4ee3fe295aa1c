"""metalearn: functional meta-learning on JAX.

    learner = ml.maml(model, ml.losses.mse, optax.sgd(0.01), num_steps=5)
    trainer = ml.meta_trainer(learner, optax.adam(1e-3))
    result = ml.fit(trainer, ml.tasks.sinusoid(), num_steps=3_000, tasks_per_step=25,
                    key=jax.random.key(0))

Read `ARCHITECTURE.md` for how the parts fit together.
"""

from pathlib import Path as _Path

from metalearn._clash import refuse_mixed_installation as _refuse_mixed_installation

_refuse_mixed_installation(_Path(__file__).parent)

from metalearn import (
    algorithms,
    data,
    environments,
    hypergradient,
    inner,
    models,
    policies,
    tasks,
    testing,
)
from metalearn.algorithms import *
from metalearn.core import losses, metrics
from metalearn.core.estimators import gradient_estimator
from metalearn.core.functions import from_apply_fn
from metalearn.core.learner import Estimate, MetaLearner, describe, is_transductive
from metalearn.core.linen import from_linen
from metalearn.core.mesh import task_mesh
from metalearn.core.model import Model, Variables
from metalearn.core.nnx import from_nnx
from metalearn.core.programs import clear_caches
from metalearn.core.summary import Summary, summary
from metalearn.core.task import (
    Examples,
    Task,
    TaskSampler,
    TaskStream,
    pad_examples,
    sample_batch,
    stack_tasks,
)
from metalearn.core.trees import masked_mean
from metalearn.lowering import lower
from metalearn.training import sinks
from metalearn.training.averaging import averaging, judged
from metalearn.training.checkpoint import CheckpointMismatch, Checkpoints
from metalearn.training.continual import Continual, fit_continually
from metalearn.training.evaluation import Evaluation, evaluate, paired_difference
from metalearn.training.fit import FitResult, NonFiniteGradient, Validation, fit
from metalearn.training.online import (
    OnlineResult,
    best_in_hindsight,
    follow_the_meta_leader,
    regret,
)
from metalearn.training.prediction import Prediction, predict
from metalearn.training.save import load, save
from metalearn.training.trainer import MetaTrainer, TrainState, meta_trainer

__version__ = "0.1.0"

__all__ = [
    "algorithms",
    "CheckpointMismatch",
    "Checkpoints",
    "Continual",
    "Estimate",
    "Evaluation",
    "Examples",
    "FitResult",
    "MetaLearner",
    "MetaTrainer",
    "Model",
    "NonFiniteGradient",
    "OnlineResult",
    "Prediction",
    "Task",
    "TaskSampler",
    "TaskStream",
    "TrainState",
    "Validation",
    "Variables",
    "averaging",
    "best_in_hindsight",
    "clear_caches",
    "data",
    "describe",
    "environments",
    "evaluate",
    "fit",
    "fit_continually",
    "follow_the_meta_leader",
    "from_apply_fn",
    "from_linen",
    "from_nnx",
    "gradient_estimator",
    "hypergradient",
    "inner",
    "is_transductive",
    "judged",
    "load",
    "losses",
    "lower",
    "masked_mean",
    "meta_trainer",
    "metrics",
    "models",
    "pad_examples",
    "paired_difference",
    "policies",
    "predict",
    "regret",
    "sample_batch",
    "save",
    "sinks",
    "Summary",
    "stack_tasks",
    "summary",
    "task_mesh",
    "tasks",
    "testing",
]
__all__ += algorithms.__all__


def __dir__() -> list[str]:
    # What completion offers: not the folders and names that this file imports.
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
