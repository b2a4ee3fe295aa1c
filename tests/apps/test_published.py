"""Published settings, from the papers and their released code."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metalearn import apps
from metalearn.apps import Outer, adam, sgd
from metalearn.core import trees

IMAGES = {"name": "made", "image_shape": [28, 28, 1], "num_classes": 12}
# Printed inner rates of code that sums the loss over the classes, for a mean over them.
FIVE_WAYS, TWENTY_WAYS = 5, 20
MINI = {
    "app.dataset": "folder:mini_imagenet",
    "app.image_size": 84,
    "app.ways": 5,
    "app.shots": 1,
    "app.queries": 15,
    "app.eval_queries": 15,
    "app.downsample": "pool",
    "outer.name": "adam",
    "outer.rate": 1e-3,
    "outer.clip_value": 10.0,
    "steps": 60_000,
    "tasks_per_step": 4,
}
CONSTANT = {"outer.schedule": "constant"}
MAML_PLUS_PLUS = {
    "learner.initial_rate": 0.1,  # `task_learning_rate`, whatever the settings say
    "learner.num_steps": 5,
    "learner.learned_rates": True,
    "learner.norm": "batch",
    "learner.first_order_until": 50 * 500,
    "steps": 100 * 500,
    "outer.rate": 1e-3,
}
PUBLISHED = {
    "omniglot-maml-paper": {
        "learner.inner_opt": sgd(FIVE_WAYS * 0.4),
        "learner.num_steps": 1,
        "learner.norm": "batch",
        "eval_steps": 3,
        "tasks_per_step": 32,
        "steps": 60_000,
        "outer.rate": 1e-3,
        "outer.clip_value": None,  # only on mini-ImageNet
        "app.width": 64,
        **CONSTANT,
    },
    "omniglot-protonet-paper": {
        "app.ways": 60,
        "app.queries": 5,
        "app.downsample": "pool",
        "outer.rate": 1e-3,
        "outer.schedule": "halving",
        "outer.halve_every": 2000,
        "outer.halve_by": 0.5,
    },
    "omniglot-reptile-paper": {
        "learner.inner_opt": adam(1e-3, b1=0.0, eps_root=0.0),
        "learner.batch_size": 10,
        "learner.num_steps": 5,
        "learner.eval_batch_size": 5,
        "learner.eval_steps": 50,
        "learner.carry_opt_state": True,
        "app.shots": 5,
        "app.queries": 5,  # both are trained on: ten in all
        "app.eval_shots": 1,
        "outer.name": "sgd",
        "outer.rate": 1.0,
        "outer.schedule": "linear",
        "tasks_per_step": 5,
        "steps": 100_000,
    },
    "mini-maml-paper": {
        **MINI,
        **CONSTANT,
        "learner.inner_opt": sgd(FIVE_WAYS * 0.01),
        "learner.num_steps": 5,
        "learner.norm": "batch",
        "eval_steps": 10,
        "app.width": 32,
    },
    "mini-maml-plus-plus-paper": {
        **MINI,
        **CONSTANT,  # its cosine ends where it begins
        **MAML_PLUS_PLUS,
        "learner.msl_steps": 15 * 500,
        "tasks_per_step": 2,
        "app.width": 48,
    },
    "omniglot-maml-plus-plus-paper": {
        **MAML_PLUS_PLUS,
        "learner.msl_steps": 10 * 500,
        "outer.schedule": "cosine",
        "outer.clip_value": None,
        "tasks_per_step": 8,
        "app.ways": TWENTY_WAYS,
        "app.queries": 1,
        "app.width": 64,
        "app.downsample": "pool",
    },
    "omniglot-imaml-paper": {
        "learner.inner_opt": sgd(0.1),
        "learner.num_steps": 16,
        "learner.lam": 2.0,
        "learner.cg_steps": 5,
        # (1 + 1) I + H / (lam + 10) has the direction of I + (H + 22) / lam.
        "learner.damping": 2.0 * (2.0 + 10.0) - 2.0,
        "learner.pull_back": True,
        "outer.rate": 1e-3,
        "tasks_per_step": 32,
        "steps": 20_000,
    },
    "mini-cavia-paper": {
        **MINI,
        "learner.rate": 1.0,  # its losses are means
        "learner.num_steps": 2,
        "learner.norm": "batch",
        "learner.clip": None,  # the mean is clipped, not each task
        "outer.schedule": "halving",
        "outer.halve_every": 5000,
        "outer.halve_by": 0.9,
        "tasks_per_step": 16,
        "app.width": 32,
    },
    "mini-mt-net-paper": {
        **MINI,
        **CONSTANT,
        "learner.inner_opt": sgd(FIVE_WAYS * 0.01),
        "learner.num_steps": 5,
        "app.width": 32,
    },
    "mini-meta-curvature-paper": {
        **MINI,
        **CONSTANT,
        "learner.rate": FIVE_WAYS * 0.01,
        "learner.num_steps": 5,
    },
    "mini-warpgrad-paper": {
        **MINI,
        **CONSTANT,
        "learner.inner_opt": sgd(0.1),
        "learner.num_steps": 5,
        "app.width": 64,
    },
    "features-leo-paper": {
        "app.ways": 5,
        "app.shots": 1,
        "app.queries": 15,
        "learner.latents": 64,
        "learner.num_steps": 5,
        "learner.fine_tune_steps": 5,
        "learner.latent_rate": FIVE_WAYS * 1.0,
        "learner.fine_tune_rate": FIVE_WAYS * 1e-3,
        "learner.dropout": 0.308,
        "learner.kl_weight": 0.756,
        "learner.encoder_penalty": 5.76e-6,
        "learner.orthogonality": 0.188,
        "learner.l2": 3.62e-10,
        "learner.codes": "example",
        "outer.rate": 2.739e-4,
        "outer.clip_value": 0.1,
        "outer.clip_array": 0.1,
        "outer.clip": None,
        "tasks_per_step": 12,
        "steps": 100_000,
        **CONSTANT,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name):
    recipe, found = apps.find(name).recipe, {}
    for path in PUBLISHED[name]:
        found[path] = recipe
        for part in path.split("."):
            found[path] = getattr(found[path], part)
    wanted = {
        k: pytest.approx(v, rel=1e-12) if isinstance(v, float) else v
        for k, v in PUBLISHED[name].items()
    }
    assert found == wanted


def test_every_image_recipe_of_a_paper_is_in_the_table():
    kinds = ("images", "features")
    names = {n for n in apps.RECIPES if n.endswith("-paper")}
    assert {n for n in names if apps.find(n).recipe.app.kind in kinds} == set(PUBLISHED)


@pytest.mark.parametrize("name", [n for n in PUBLISHED if "plus-plus" in n])
def test_norms_of_published_maml_plus_plus_are_of_steps_and_do_not_adapt(name):
    """No rate moves them; each step has its own, as in the released code."""
    recipe = apps.find(name).recipe
    inner = recipe.state_like(IMAGES).variables.params["inner"]
    rates = trees.leaf_paths(inner["rates"])
    assert rates and not any("Norm" in path for path in rates)
    norms = trees.leaf_paths(inner["norm"])
    assert len(norms) == 8 and all("BatchNorm" in path for path in norms)
    assert {leaf.shape for leaf in jax.tree.leaves(inner)} >= {(5, recipe.app.width), (5,)}


def test_the_control_of_cavia_adapts_one_norm():
    learner = apps.find("small-maml-norm").recipe.build(IMAGES)
    task = jax.eval_shape(lambda: apps.find("small-maml-norm").recipe.app.example(IMAGES))
    made = jax.eval_shape(learner.init, jax.random.key(0), task).params["model"]
    select = apps.find("small-maml-norm").recipe.learner.adapt_filter
    moving = trees.leaf_paths(trees.split(made, select)[0])
    assert moving == ["Norm_2/BatchNorm_0/bias", "Norm_2/BatchNorm_0/scale"]
    film = apps.find("small-cavia").recipe
    cavia = jax.eval_shape(film.build(IMAGES).init, jax.random.key(0), task)
    assert "Norm_2/BatchNorm_0/scale" in trees.leaf_paths(cavia.params["model"])


def test_decay_of_the_halving_schedule():
    """CAVIA's code: 0.9 every 5,000 steps."""
    outer = Outer(rate=1e-3, schedule="halving", halve_every=5000, halve_by=0.9)
    rates = []
    for count in (0, 4999, 5000, 59_999):
        opt = dataclasses.replace(outer, name="sgd").build(60_000)
        fill = functools.partial(jnp.full_like, fill_value=count)
        state = jax.tree.map(fill, opt.init(jnp.ones(())))
        rates.append(-float(opt.update(jnp.ones(()), state)[0]))
    np.testing.assert_allclose(rates, [1e-3, 1e-3, 9e-4, 1e-3 * 0.9**11], rtol=1e-5)
