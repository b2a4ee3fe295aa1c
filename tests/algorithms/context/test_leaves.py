"""Leaves of HSML that are placed where the tasks are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import INNER, differs
from tiny import one, plain, sine_batch

import metalearn as ml
from metalearn.algorithms.context.leaves import add_leaf, place_leaves

SMALL = {"hidden": 3, "example_size": 2, "aggregator": "mean"}


def four_places(made, variables, num=40):
    """Constant curves at four heights, whose embeddings are four points."""
    heights = jnp.asarray([-3.0, -1.0, 1.0, 3.0])[jnp.arange(num) % 4]
    x = jnp.broadcast_to(jnp.linspace(-1, 1, 5)[:, None], (num, 5, 1))
    sets = ml.Examples(
        x=x, y=heights[:, None, None] * jnp.ones((num, 5, 1)), mask=jnp.ones((num, 5), bool)
    )
    embed = lambda support: made.adapt(variables, support).info
    return ml.Task(support=sets, query=sets), jax.jit(jax.vmap(embed))


def test_placed_leaves_are_where_the_tasks_are(x64):
    """Four groups of equal tasks: a leaf at each, which leads the next as was asked."""
    options = {**SMALL, "num_steps": 0}
    made = ml.hsml(plain(1), ml.losses.mse, optax.sgd(INNER), **options)
    variables = made.init(jax.random.key(0), one(sine_batch()))
    tasks, embed = four_places(made, variables)
    placed = place_leaves(made, variables, tasks, jax.random.key(1), lead=3.0)
    points = np.asarray(embed(tasks.support).embedding)[:4]
    leaves = placed.params["structure"]["tree"][0]
    distances = ((points[:, None] - np.asarray(leaves["centres"])[None]) ** 2).sum(-1)
    np.testing.assert_allclose(distances.min(-1), 0, atol=1e-12)
    assert sorted(distances.argmin(-1)) == [0, 1, 2, 3]
    seconds = np.sort(distances, -1)[:, 1]
    np.testing.assert_allclose(leaves["width"], np.median(seconds) / 6, rtol=1e-6)
    shares = four_places(made, placed)[1](tasks.support).leaves
    shares = np.sort(np.asarray(shares)[:4], -1)
    np.testing.assert_allclose(
        np.log(shares[:, -1] / shares[:, -2]), 3 * seconds / np.median(seconds), rtol=1e-6
    )
    # What is placed trains as before, but for the width, and takes another leaf.
    batch = jax.tree.map(lambda leaf: leaf[:2], tasks)
    outer = optax.adam(0.1)
    trainer = ml.meta_trainer(made, outer)
    state = dataclasses.replace(
        trainer.init(jax.random.key(0), one(batch)),
        variables=placed,
        opt_state=outer.init(placed.params),
    )
    state, _ = jax.jit(trainer.step)(state, batch, key=jax.random.key(0))
    after = state.variables.params["structure"]["tree"][0]
    assert after["width"] == leaves["width"]
    assert differs(after["centres"], leaves["centres"])
    grown = add_leaf(placed, jax.random.key(2)).params["structure"]["tree"][0]
    assert grown["centres"].shape == (5, 3)
    assert grown["width"] == leaves["width"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no tree", "no tree of clusters to place"),
        ("few", "4 leaves were to be placed"),
        ("same", "expected tasks that differ"),
        ("lead", "lead is 0"),
    ],
)
def test_leaves_that_cannot_be_placed(case, message):
    make = ml.mumomaml if case == "no tree" else ml.hsml
    options = {**SMALL, "num_steps": 0}
    made = make(plain(1), ml.losses.mse, optax.sgd(INNER), **options)
    variables = made.init(jax.random.key(0), one(sine_batch()))
    tasks, _ = four_places(made, variables, 3 if case == "few" else 12)
    if case == "same":
        tasks = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), tasks)
    with pytest.raises(ValueError, match=message):
        place_leaves(
            made, variables, tasks, jax.random.key(0), lead=0 if case == "lead" else 4.0
        )
