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

from metalearn import data, inner, losses, metrics, models, sinks, tasks, testing
from metalearn._mesh import task_mesh
from metalearn._task import (
    Examples,
    Task,
    TaskSampler,
    TaskStream,
    pad_examples,
    sample_batch,
    stack_tasks,
)
from metalearn._tree import masked_mean
from metalearn.algorithms import (
    alpha_maml,
    anil,
    bmaml,
    bmg,
    boil,
    cavia,
    emaml,
    es_maml,
    fine_tune,
    fomaml,
    hsml,
    imaml,
    leo,
    llama,
    maml,
    maml_plus_plus,
    meta_curvature,
    meta_sgd,
    mt_net,
    mumomaml,
    no_adaptation,
    platipus,
    protonet,
    reptile,
    sharp_maml,
    t_net,
    warpgrad,
)
from metalearn.algorithms.alpha_maml import alpha_maml_optimiser, hypergradient_descent
from metalearn.algorithms.hsml import add_leaf
from metalearn.averaging import averaging, judged
from metalearn.checkpoint import CheckpointMismatch, Checkpoints
from metalearn.continual import Continual, fit_continually
from metalearn.estimators import gradient_estimator
from metalearn.evaluation import Evaluation, evaluate, paired_difference
from metalearn.learner import Estimate, MetaLearner, describe, is_transductive
from metalearn.lowering import lower
from metalearn.model import Model, Variables, from_apply_fn, from_linen, from_nnx
from metalearn.online import (
    OnlineResult,
    best_in_hindsight,
    follow_the_meta_leader,
    regret,
)
from metalearn.trainer import MetaTrainer, TrainState, meta_trainer
from metalearn.training import FitResult, NonFiniteGradient, Validation, fit

__version__ = "0.1.0"

__all__ = [
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
    "Task",
    "TaskSampler",
    "TaskStream",
    "TrainState",
    "Validation",
    "Variables",
    "add_leaf",
    "alpha_maml",
    "alpha_maml_optimiser",
    "anil",
    "averaging",
    "best_in_hindsight",
    "bmaml",
    "bmg",
    "boil",
    "cavia",
    "data",
    "describe",
    "emaml",
    "es_maml",
    "evaluate",
    "fine_tune",
    "fit",
    "fit_continually",
    "follow_the_meta_leader",
    "fomaml",
    "from_apply_fn",
    "from_linen",
    "from_nnx",
    "gradient_estimator",
    "hsml",
    "hypergradient_descent",
    "imaml",
    "inner",
    "is_transductive",
    "judged",
    "leo",
    "llama",
    "losses",
    "lower",
    "maml",
    "maml_plus_plus",
    "masked_mean",
    "meta_curvature",
    "meta_sgd",
    "meta_trainer",
    "metrics",
    "models",
    "mt_net",
    "mumomaml",
    "no_adaptation",
    "pad_examples",
    "paired_difference",
    "platipus",
    "protonet",
    "regret",
    "reptile",
    "sample_batch",
    "sharp_maml",
    "sinks",
    "stack_tasks",
    "t_net",
    "task_mesh",
    "tasks",
    "testing",
    "warpgrad",
]
