"""HSML whose ways of routing are numbers, so that many variants train in one program.

The network of curves is tiny: a step of one training is mostly the cost of starting
operations. So variants and seeds are lanes of one `vmap`, and what differs between lanes
is data. `ml.hsml` is the lane of `Numbers(ordered=1.0)`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.cluster import vq

import metalearn as ml
from metalearn.algorithms.context import clusters
from metalearn.core.trees import masked_mean
from metalearn.models.dense import dense, linear
from metalearn.models.set_encoder import pooled
from metalearn.tasks.families import function_families

SHOTS, BATCH, TREE, HIDDEN = 10, 25, (4, 2, 1), 40
MODEL = ml.from_linen(ml.models.MLP(1, widths=(40, 40)))


class Numbers(NamedTuple):
    """What sets a variant apart; flags are 0 or 1.

    Attributes:
      sigma: Width of the leaves at the start.
      upper: Width of the clusters above them.
      learned: Whether the width of the leaves is learned.
      reconstruction: Weight of the reconstruction loss.
      balance: Weight of the information between task and leaf in a batch, which rewards
        sure and equally used leaves.
      sphere: Whether leaves see the direction of the embedding only.
      linear: Whether the layer above the leaves is routed by a linear layer.
      tree: Whether the gate sees the root; otherwise it sees the embedding alone.
      ordered: Whether the aggregator reads the points from left to right.
      scale: Factor of inputs and targets in the eyes of the aggregator.
      oracle: Whether the leaf of a task is its true family.
      single: Whether one leaf takes every task.
      hard: Whether the forward pass sends a task to its strongest leaf alone.
    """

    sigma: Any = 2.0
    upper: Any = 2.0
    learned: Any = 0.0
    reconstruction: Any = 0.01
    balance: Any = 0.0
    sphere: Any = 0.0
    linear: Any = 0.0
    tree: Any = 1.0
    ordered: Any = 0.0
    scale: Any = 1.0
    oracle: Any = 0.0
    single: Any = 0.0
    hard: Any = 0.0


def sampler() -> ml.TaskSampler:
    """Curves of four families, 10 support and 10 query points."""
    return function_families(SHOTS, 10)


def init(seed: int, aggregator: str, numbers: Numbers) -> Any:
    """Params of one lane, those that `ml.hsml` or `ml.mumomaml` start with."""
    key = jax.random.key(seed)
    task = sampler()(key)
    make = ml.hsml if numbers.tree else ml.mumomaml
    own = "mean" if aggregator in ("deep", "attention") else aggregator
    made = make(MODEL, ml.losses.mse, optax.sgd(1e-3), aggregator=own)
    params = dict(made.init(key, task).params)
    structure = dict(params["structure"])
    if not numbers.tree:
        structure["tree"] = clusters.tree_init(key, TREE, HIDDEN, "gaussian")
        gate = structure["gate"]
        widened = jax.tree.map(lambda w: jnp.concatenate([w, jnp.zeros_like(w)]), gate["w"])
        structure["gate"] = {"w": widened, "b": gate["b"]}
    if own != aggregator:
        structure["embed"] = deep_init(key, 20, HIDDEN)
    structure["linear"] = dense(jax.random.fold_in(key, 1), HIDDEN, TREE[1])
    structure["log_sigma"] = jnp.log(jnp.float32(numbers.sigma))
    return {"model": params["model"], "structure": structure}


def embed(
    structure: Any, aggregator: str, numbers: Numbers, support: ml.Examples
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The embedding g, the point that leaves see, and the reconstruction loss."""
    rows = numbers.scale * jnp.concatenate([support.x, support.y], -1)
    order = jnp.argsort(support.x[:, 0])
    rows = jnp.where(numbers.ordered, rows[order], rows)
    e = linear(structure["example"], rows)
    g, loss = AGGREGATORS[aggregator](structure["embed"], e, support.mask)
    direction = g / jnp.sqrt(jnp.sum(g**2) + 1e-12)
    return g, jnp.where(numbers.sphere, direction, g), loss


def recurrent(params: Any, e: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`metalearn.models.set_encoder.recurrent` of full sets, in a third of the products.

    The three gates of a cell are one product, and the encoder's inputs are one for all
    rows: what costs here is starting operations.
    """
    del mask
    gates = ("r", "z", "n")
    join = lambda cell, side, leaf: jnp.concatenate(
        [cell[side + gate][leaf] for gate in gates], -1
    )

    def cell(weights: Any, state: jax.Array, inputs: jax.Array) -> jax.Array:
        recurrent = state @ join(weights, "h", "kernel")
        r0, z0, n0 = jnp.split(inputs + join(weights, "i", "bias"), 3)
        r1, z1, n1 = jnp.split(recurrent, 3)
        z = jax.nn.sigmoid(z0 + z1)
        n = jnp.tanh(n0 + jax.nn.sigmoid(r0 + r1) * (n1 + weights["hn"]["bias"]))
        return (1 - z) * n + z * state

    def encode(state: jax.Array, inputs: jax.Array) -> tuple:
        state = cell(params["encoder"], state, inputs)
        return state, state

    def decode(carry: tuple, _: Any) -> tuple:
        state, row = carry
        state = cell(params["decoder"], state, row @ join(params["decoder"], "i", "kernel"))
        row = linear(params["out"], state)
        return (state, row), row

    first = jnp.zeros((params["out"]["w"].shape[0],), e.dtype)
    inputs = e @ join(params["encoder"], "i", "kernel")
    last, path = jax.lax.scan(encode, first, inputs)
    _, rebuilt = jax.lax.scan(decode, (last, jnp.zeros_like(e[0])), None, len(e))
    target = jax.lax.stop_gradient(e)
    return path.mean(0), jnp.mean((rebuilt[::-1] - target) ** 2)


def deep_init(key: jax.Array, size: int, hidden: int) -> Any:
    """Layers of `deep` and `attention`."""
    sizes = {
        "in": (size, hidden),
        "q": (hidden, hidden),
        "k": (hidden, hidden),
        "v": (hidden, hidden),
        "mix": (2 * hidden, hidden),
        "pooled": (hidden, hidden),
        "out": (hidden, hidden),
        "back": (hidden, size),
    }
    keys = jax.random.split(key, len(sizes))
    return {name: dense(k, *sizes[name]) for k, name in zip(keys, sizes, strict=True)}


def deep(params: Any, e: jax.Array, mask: jax.Array, *, attends: bool) -> tuple:
    """A set encoder of more layers, whose rows may attend to one another."""
    del mask
    codes = jax.nn.relu(linear(params["in"], e))
    if attends:
        q, k, v = (linear(params[name], codes) for name in "qkv")
        seen = jax.nn.softmax(q @ k.T / q.shape[-1] ** 0.5, -1) @ v
    else:
        seen = jnp.zeros_like(codes)
    mixed = jax.nn.relu(linear(params["mix"], jnp.concatenate([codes, seen], -1)))
    back = linear(params["back"], mixed)
    loss = 0.5 * jnp.mean((back - jax.lax.stop_gradient(e)) ** 2)
    pooled = jax.nn.relu(linear(params["pooled"], mixed.mean(0)))
    return linear(params["out"], pooled), loss


AGGREGATORS = {
    "gru": recurrent,
    "mean": pooled.apply,
    "deep": functools.partial(deep, attends=False),
    "attention": functools.partial(deep, attends=True),
}


def climb(
    structure: Any, numbers: Numbers, g: jax.Array, seen: jax.Array, family: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The root of the tree and the shares of the leaves."""
    leaves, middle, root = structure["tree"]
    log_sigma = structure["log_sigma"]
    log_sigma = jnp.where(numbers.learned, log_sigma, jax.lax.stop_gradient(log_sigma))
    distance = jnp.sum((seen[None] - leaves["centres"]) ** 2, -1)
    p = jax.nn.softmax(-distance / (2 * jnp.exp(log_sigma)))
    p = jnp.where(numbers.oracle, jax.nn.one_hot(family, len(p)), p)
    p = jnp.where(numbers.single, jax.nn.one_hot(0, len(p)), p)
    # Straight through: the derivative is that of the soft shares.
    strongest = jax.nn.one_hot(jnp.argmax(p), len(p))
    used = jnp.where(numbers.hard, p + jax.lax.stop_gradient(strongest - p), p)
    nodes = used[:, None] * jnp.tanh(jnp.einsum("d,mde->me", g, leaves["w"]) + leaves["b"])
    far = jnp.sum((nodes[:, None] - middle["centres"][None]) ** 2, -1)
    logits = jnp.where(
        numbers.linear, linear(structure["linear"], nodes), -far / (2 * numbers.upper)
    )
    maps = jnp.tanh(jnp.einsum("kd,mde->kme", nodes, middle["w"]) + middle["b"][None])
    nodes = jnp.einsum("km,kmd->md", jax.nn.softmax(logits, -1), maps)
    h = jnp.tanh(nodes @ root["w"][0] + root["b"]).sum(0)
    return numbers.tree * h, p


@functools.cache
def _inner() -> ml.MetaLearner:
    return ml.maml(MODEL, ml.losses.mse, optax.sgd(1e-3), num_steps=5)


def one_task(params: Any, aggregator: str, numbers: Numbers, task: ml.Task) -> dict:
    """Adapts to a task and predicts its queries."""
    structure = params["structure"]
    g, seen, rebuilt = embed(structure, aggregator, numbers, task.support)
    h, p = climb(structure, numbers, g, seen, task.info["family"])
    gate = clusters.gates(structure["gate"], jnp.concatenate([g, h]))
    started = ml.Variables(
        params={"model": jax.tree.map(jnp.multiply, params["model"], gate)},
        state={"model": {}, "step": jnp.zeros((), jnp.int32)},
    )
    adapted = _inner().adapt(started, task.support)
    outputs = _inner().predict(adapted, task.query.x)
    loss = masked_mean(jnp.mean((outputs - task.query.y) ** 2, -1), task.query.mask)
    return {"loss": loss, "rebuilt": rebuilt, "g": g, "seen": seen, "leaves": p}


def information(p: jax.Array) -> jax.Array:
    """Mutual information of task and leaf, from shares `[T, K]`, in nats."""
    entropy = lambda q: -jnp.sum(q * jnp.log(q + 1e-12), -1)
    return entropy(p.mean(0)) - entropy(p).mean()


def objective(params: Any, aggregator: str, numbers: Numbers, tasks: ml.Task) -> Any:
    """Outer loss of a batch of tasks."""
    out = jax.vmap(lambda task: one_task(params, aggregator, numbers, task))(tasks)
    loss = out["loss"].mean() + numbers.reconstruction * out["rebuilt"].mean()
    return loss - numbers.balance * information(out["leaves"]), out["loss"].mean()


class Lanes(NamedTuple):
    """Variants and seeds that train side by side, all leaves `[V, ...]`.

    Attributes:
      params: Params of each lane.
      moments: State of Adam.
      numbers: `Numbers` of each lane.
      seeds: Training seed of each lane.
    """

    params: Any
    moments: Any
    numbers: Numbers
    seeds: Any


def optimiser(steps: int) -> optax.GradientTransformation:
    """Adam of the recipes families-*, whose rate falls to zero over `steps`."""
    return optax.adam(optax.cosine_decay_schedule(1e-3, steps))


def start(aggregator: str, numbers: list[Numbers], seeds: list[int], steps: int) -> Lanes:
    """Fresh lanes."""
    each = [init(s, aggregator, n) for s, n in zip(seeds, numbers, strict=True)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    stacked = Numbers(*(jnp.asarray(field, jnp.float32) for field in zip(*numbers)))
    return Lanes(params, optimiser(steps).init(params), stacked, jnp.asarray(seeds))


@functools.partial(jax.jit, static_argnums=(1, 3, 4), donate_argnums=0)
def train(lanes: Lanes, aggregator: str, begin: Any, num: int, steps: int) -> tuple:
    """`num` outer steps of every lane; also the losses `[V]`, averaged over them."""

    def lane(params: Any, numbers: Numbers, seed: Any, number: Any) -> tuple:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), seed), number)
        tasks = ml.sample_batch(sampler(), (), jax.random.split(key, BATCH))
        return jax.grad(objective, has_aux=True)(params, aggregator, numbers, tasks)

    def step(carry: tuple, number: Any) -> tuple:
        params, moments = carry
        grads, loss = jax.vmap(lane, (0, 0, 0, None))(
            params, lanes.numbers, lanes.seeds, number
        )
        updates, moments = optimiser(steps).update(grads, moments)
        return (optax.apply_updates(params, updates), moments), loss

    carry = (lanes.params, lanes.moments)
    (params, moments), losses = jax.lax.scan(step, carry, begin + jnp.arange(num))
    return Lanes(params, moments, lanes.numbers, lanes.seeds), losses.mean(0)


def test_task(number: Any, seed: int) -> ml.Task:
    """The task that `evaluate` draws with a seed under a number."""
    key = jax.random.fold_in(jax.random.key(seed), number)
    return sampler()(jax.random.split(key, 3)[0])


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def judge(params: Any, numbers: Numbers, aggregator: str, num: int, seed: int) -> tuple:
    """`info` of the tasks that `evaluate` draws, and what one lane makes of them."""

    def one(number: Any) -> tuple:
        task = test_task(number, seed)
        return task.info, one_task(params, aggregator, numbers, task)

    return jax.lax.map(one, jnp.arange(num), batch_size=100)


def lane_of(lanes: Lanes, lane: int) -> tuple[Any, Numbers]:
    """Params and numbers of one lane."""
    return jax.tree.map(lambda leaf: leaf[lane], (lanes.params, lanes.numbers))


def k_means(points: np.ndarray, num: int, *, seed: int) -> np.ndarray | None:
    """Centres `[K, D]` of `num` clusters of points `[T, D]`, the best of ten starts.

    `None` where there are fewer different points, or every start leaves a cluster empty.
    """
    if len(np.unique(points, axis=0)) < num:
        return None
    found = []
    for start in range(10):
        rng = np.random.default_rng([seed, start])
        try:
            centres, nearest = vq.kmeans2(
                points, num, iter=50, minit="++", missing="raise", rng=rng
            )
        except vq.ClusterError:
            continue
        found.append((np.sum((points - centres[nearest]) ** 2), centres))
    return min(found, key=lambda pair: pair[0])[1] if found else None


def width_of_lead(points: np.ndarray, centres: np.ndarray, lead: float) -> float:
    """Width at which the nearest centre leads the second by `lead` nats.

    Args:
      points: Embeddings of tasks `[T, D]`; the lead is that of the median task.
      centres: Centres of two clusters or more `[K, D]`.
      lead: Difference of the logarithms of both shares.
    """
    distances = np.sum((points[:, None] - centres[None]) ** 2, -1)
    first, second = np.sort(distances, -1)[:, :2].T
    return float(np.median(second - first) / (2 * lead))


def place_leaves(
    lanes: Lanes, lane: int, aggregator: str, lead: float, again: bool, num: int = 1000
) -> Lanes:
    """Leaves of one lane at the k-means of embeddings.

    With `again` the means start where the leaves are, so that a leaf keeps its tasks.
    """
    params, numbers = lane_of(lanes, lane)
    points = np.asarray(judge(params, numbers, aggregator, num, 12345)[1]["seen"])
    structure = dict(lanes.params["structure"])
    leaves, *upper = structure["tree"]
    if again:
        before = np.asarray(leaves["centres"][lane])
        centres = vq.kmeans2(points, before, iter=50, minit="matrix")[0]
    else:
        centres = k_means(points, TREE[0], seed=int(lanes.seeds[lane]))
    width = width_of_lead(points, centres, lead)
    leaves = {**leaves, "centres": leaves["centres"].at[lane].set(centres)}
    structure["tree"] = [leaves, *upper]
    structure["log_sigma"] = structure["log_sigma"].at[lane].set(np.log(width))
    return lanes._replace(params={**lanes.params, "structure": structure})
