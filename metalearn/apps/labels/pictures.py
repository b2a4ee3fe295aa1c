"""The picture of a run: losses and weights of training examples, right and wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalearn.algorithms.joint import clean_weights, loss_weights
from metalearn.apps import plots
from metalearn.apps.base import Predictor
from metalearn.apps.labels import batches
from metalearn.core import losses
from metalearn.core.keys import of_seed
from metalearn.core.model import Model, Variables
from metalearn.core.task import Task
from metalearn.core.types import Array
from metalearn.data.noisy import NoisySet
from metalearn.tasks.dealt import rows_of

MOST = 2000  # examples in a picture


class Weighed(NamedTuple):
    """Training examples of a run.

    Attributes:
      groups: Rows of each group, by its name.
      losses: Loss of each example by its given label, `[I]`.
      weights: Weight of each example, 1 being that of plain training, `[I]`.
      curve: Losses and the weights a learned function gives them, or None.
    """

    groups: dict[str, np.ndarray]
    losses: np.ndarray
    weights: np.ndarray
    curve: tuple[np.ndarray, np.ndarray] | None


def training_examples(
    data: NoisySet, model: Model, predictor: Predictor, *, batch: int, clean_batch: int
) -> Weighed:
    """Losses and weights of training examples at the end of training.

    Weights are those of the learned function of the loss where the run has one. Of any
    other run they are those of learning to reweight, in random batches.

    Args:
      data: The set.
      model: The network.
      predictor: Predictions and variables of the run.
      batch: Examples that are weighed together.
      clean_batch: Clean examples that weigh them.
    """
    train = data.train
    batch = min(batch, len(train))
    num = max(min(MOST, len(train)) // batch, 1)
    rows = np.random.default_rng(0).permutation(len(train))[: num * batch]
    some = train.rows(rows)
    sampler = batches.training(
        some, data.clean, num_support=batch, num_query=clean_batch, name="picture"
    )
    of_model, net = _parts(predictor.variables)

    @jax.jit
    def run(number: Array) -> tuple[Array, Array]:
        drawn = sampler.sample(sampler.data, jax.random.fold_in(of_seed(0), number))
        support = rows_of(
            sampler.data["support"], number * batch + jnp.arange(batch), drawn.support.mask
        )
        task = Task(support=support, query=drawn.query)
        logits, _ = model.apply(of_model, support.x)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, support.y)
        if net is not None:
            return each, loss_weights(net, each)
        found = clean_weights(model, of_model, task, loss_fn=losses.cross_entropy)
        return each, batch * found

    found = [jax.device_get(run(jnp.int32(number))) for number in range(num)]
    each, weights = (np.concatenate(parts) for parts in zip(*found))
    curve = None
    if net is not None:
        x = np.linspace(0, max(float(each.max()), 1e-3), 200, dtype=np.float32)
        curve = x, np.asarray(loss_weights(net, jnp.asarray(x)))
    return Weighed(_groups(data, some.labels, some.truth), each, weights, curve)


def _parts(variables: Variables) -> tuple[Variables, Any]:
    """Variables of the network, and the parameters of a function of the loss, if any."""
    params, state = variables.params, variables.state
    if isinstance(state, dict) and "model" in state and "model" in params:
        of_model = Variables(params=params["model"], state=state["model"])
        return of_model, state.get("weights")
    return variables, None


def _groups(
    data: NoisySet, labels: np.ndarray, truth: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Right and wrong labels; else frequent and rare classes, if some are rarer."""
    if truth is not None and (truth != labels).any():
        wrong = truth != labels
        return {"label is right": np.flatnonzero(~wrong), "wrong": np.flatnonzero(wrong)}
    counts = np.bincount(data.train.labels, minlength=data.num_classes)
    rare = (counts < np.median(counts))[labels]
    if len(counts) == 2:
        rare = labels == counts.argmin()
    if counts.max() > 1.5 * max(counts.min(), 1) and rare.any():
        return {
            "frequent class": np.flatnonzero(~rare),
            "rare class": np.flatnonzero(rare),
        }
    return {"all": np.arange(len(labels))}


def losses_and_weights(path: str | Path, found: Weighed, *, title: str) -> None:
    """Histograms of losses and of weights, for each group of training examples.

    Args:
      path: Path of a .png file.
      found: The examples.
      title: Title above the figure.
    """
    figure = plots.figure_of(8.4, 3.6)
    left, right = figure.subplots(1, 2)
    colours = (plots.RIGHT, plots.WRONG)
    top = max(float(np.quantile(found.losses, 0.99)), 1e-3)
    for (name, rows), colour in zip(found.groups.items(), colours):
        if not len(rows):
            continue
        label = f"{name} ({len(rows):,})"
        _histogram(left, np.minimum(found.losses[rows], top), (0, top), colour, label)
        mean = found.weights[rows].mean()
        if found.curve is not None:
            right.plot(
                np.minimum(found.losses[rows], top),
                found.weights[rows],
                ".",
                color=colour,
                ms=3,
                alpha=0.4,
                label=f"{name}: mean {mean:.2f}",
            )
        else:
            most = max(float(np.quantile(found.weights, 0.99)), 1e-3)
            values = np.minimum(found.weights[rows], most)
            _histogram(right, values, (0, most), colour, f"{name}: mean {mean:.2f}")
    left.set_xlabel("loss by the given label")
    left.set_ylabel("share of the group")
    left.set_title("losses", loc="left", fontsize=10)
    if found.curve is not None:
        x, y = found.curve
        shown = x <= top
        right.plot(x[shown], y[shown], color=plots.INK, lw=1.5, zorder=0)
        right.set_ylim(0, 1.1 * max(float(y[shown].max()), 1e-3))
        right.set_xlabel("loss by the given label")
        right.set_ylabel("weight")
        right.set_title("the learned function of the loss", loc="left", fontsize=10)
    else:
        right.set_xlabel("weight, 1 as in plain training")
        right.set_ylabel("share of the group")
        right.set_title("weights by a clean batch", loc="left", fontsize=10)
    for ax in (left, right):
        plots.tidy(ax)
        ax.legend(frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(path)


def _histogram(ax: Any, values: np.ndarray, limits: Any, colour: str, label: str) -> None:
    weights = np.full(len(values), 1 / len(values))
    style = {"histtype": "stepfilled", "alpha": 0.45, "color": colour, "label": label}
    ax.hist(values, bins=40, range=limits, weights=weights, **style)
