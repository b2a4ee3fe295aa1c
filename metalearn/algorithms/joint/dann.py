"""DANN: features from which nobody can tell the target domain from the sources.

Y. Ganin et al. Domain-Adversarial Training of Neural Networks. JMLR 2016. A discriminator
learns to tell features of unlabelled target images from those of labelled source images.
The features descend the loss of the classes and ascend that of the discriminator. Both are
one gradient of one sum,

    L_da = L_sup(labelled rows) + L_dom(discriminator(R(features))),

where R is the identity whose derivative is `-weight`.

**Transductive**: images of the target domain take part in training, without their labels.
A comparison with a learner that has seen none says what these images are worth.

Differences from the paper:

- The two sides of the discriminator count the same, however many rows each has.
- Sources and target are normalised together, so batch norm has seen the target even where
  the weight is 0. Its running averages are those of this mixture.
- All sources are one side; the discriminator does not tell them from each other.
- The weight grows over `ramp_steps` steps as in the paper; its rate does not fall along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metalearn.algorithms.joint.builder import Gradient, joint, network_of
from metalearn.core import checks, metrics, trees
from metalearn.core.keys import split_key
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples, Task, concatenate
from metalearn.core.types import Array, Key, LossFn, PyTree, TaskChunk
from metalearn.inner.norm import JointNorm

_kernel = jax.nn.initializers.lecun_normal()


def dann(
    encoder: Model,
    loss_fn: LossFn,
    *,
    num_ways: int,
    adversarial_weight: float = 1.0,
    ramp_steps: int = 0,
    discriminator_width: int = 64,
    norm: JointNorm = "running",
    task_chunk: TaskChunk = "auto",
) -> MetaLearner:
    """One model whose features do not tell the target domain from the sources.

    Transductive: a task is a batch of labelled rows, its support and query sets, and of
    unlabelled inputs of the target domain, `info["target"]` `[U, ...]`. Tasks without them
    have the inputs of the query set in their place. At test the model predicts as it is.

    Args:
      encoder: Network that gives features `[N, D]`.
      loss_fn: Loss of the labelled rows.
      num_ways: Number of classes, of a linear head on the features.
      adversarial_weight: Weight of the reversed gradient, 0 or more.
      ramp_steps: Steps over which the weight grows from 0; at 0 it is constant.
      discriminator_width: Hidden units of the discriminator.
      norm: Batch-norm policy: "running", "support" or "batch"; see `metalearn.inner.norm`.
      task_chunk: Tasks handled at once, or "auto".

    Returns:
      A `MetaLearner`. Params are `{"model", "discriminator"}`; the state counts steps.

    Raises:
      ValueError: a number is out of range, or given where nothing reads it.

    Example:
      >>> encoder = ml.from_linen(ml.models.Conv4(width=32, downsample="stride"))
      >>> learner = ml.dann(encoder, ml.losses.cross_entropy, num_ways=10)
    """
    base = adversarial(
        encoder, loss_fn, num_ways, adversarial_weight, ramp_steps, discriminator_width
    )

    def gradient(network: Any) -> Gradient:
        of_base = base.gradient(keeps=norm == "running")

        def of_task(variables: Variables, task: Task, *, key: Key):
            step, state = variables.state["step"], variables.state["model"]
            grads, (new, report) = of_base(
                variables.params,
                state,
                concatenate(task.support, task.query),
                target_of(task),
                weight=base.weight(step),
                key=key,
            )
            return grads, ({"model": new, "step": step + 1}, report)

        del network
        return of_task

    return joint(
        *("dann", base.model, loss_fn, gradient),
        level=base.level,
        memory=counter,
        settings=base.settings,
        norm=norm,
        task_chunk=task_chunk,
    )


class Adversarial(NamedTuple):
    """The parts of the objective, for learners that have it as their base.

    Attributes:
      model: Encoder and head, params `{"body", "head"}`.
      level: Function `(key, variables of the model) -> {"discriminator": params}`.
      weight: Function from the number of a step to the weight of the reversed gradient.
      gradient: Function `(*, keeps) -> gradient`, whose result is a function `(params,
        state, examples, target, *, weight, key) -> (gradients, (state, report))`.
      settings: Hyper-parameters for `describe`.
    """

    model: Model
    level: Callable[[Key, Variables], dict[str, PyTree]]
    weight: Callable[[Array], Array | float]
    gradient: Callable[..., Callable[..., tuple[PyTree, tuple[PyTree, dict]]]]
    settings: dict[str, Any]


def adversarial(
    encoder: Model,
    loss_fn: LossFn,
    num_ways: int,
    adversarial_weight: float,
    ramp_steps: int,
    discriminator_width: int,
) -> Adversarial:
    """The objective and its networks.

    Raises:
      ValueError: a number is out of range.
    """
    checks.model(encoder, "encoder")
    checks.whole_number("num_ways", num_ways, least=2)
    checks.number("adversarial_weight", adversarial_weight)
    checks.whole_number("ramp_steps", ramp_steps, least=0)
    checks.whole_number("discriminator_width", discriminator_width, least=1)
    if not adversarial_weight:
        checks.unread(dann, {"ramp_steps": ramp_steps}, "adversarial_weight above 0")
    both = _classifier(encoder, num_ways, features=True)

    def level(key: Key, made: Variables) -> dict[str, PyTree]:
        like = made.params["head"]["kernel"]
        return {"discriminator": _mlp_init(key, like, discriminator_width)}

    def weight(step: Array) -> Array | float:
        if not ramp_steps:
            return adversarial_weight  # exact in any dtype
        done = jnp.minimum(step.astype(jnp.float32) / ramp_steps, 1)
        return adversarial_weight * jnp.tanh(5 * done)  # 2 / (1 + exp(-10 p)) - 1

    def gradient(*, keeps: bool) -> Callable:
        network = network_of(both, loss_fn, keeps=keeps)

        def loss(params, state, examples: Examples, target: Unlabelled, weight, key):
            num = examples.mask.shape[0]
            everything = _with_target(examples, target)
            (features, logits), state = network.apply(
                params["model"], state, everything, key=key
            )
            known = logits[:num]
            told = metrics.of_task(loss_fn, known, examples)
            hidden = reverse(features, jnp.asarray(weight, features.dtype))
            apart = _mlp(params["discriminator"], hidden)
            domain = domain_loss(apart, everything.mask, num)
            report = {f"joint/{name}": value for name, value in told.items()}
            report["domain/loss"] = domain
            return told["loss"] + domain.astype(told["loss"].dtype), (state, report)

        slope = jax.grad(loss, has_aux=True)

        def of(params, state, examples, target, *, weight, key):
            return slope(params, state, examples, target, weight, key)

        return of

    settings = {
        "num_ways": num_ways,
        "adversarial_weight": adversarial_weight,
        "ramp_steps": ramp_steps,
        "discriminator_width": discriminator_width,
    }
    model = _classifier(encoder, num_ways, features=False)
    return Adversarial(model, level, weight, gradient, settings)


@jax.custom_vjp
def reverse(x: Array, weight: Array) -> Array:
    """The identity, whose derivative is `-weight`: what follows descends, `x` ascends.

    A rule of its own, because no function has this derivative. The rule is linear in the
    cotangent, so that it can be differentiated again.
    """
    del weight
    return x


def _forward(x: Array, weight: Array) -> tuple[Array, Array]:
    return x, weight


def _backward(weight: Array, cotangent: Array) -> tuple[Array, Array]:
    return -weight * cotangent, jnp.zeros_like(weight)


reverse.defvjp(_forward, _backward)


def domain_loss(logits: Array, mask: Array, num: int) -> Array:
    """Binary cross-entropy of two sides, which count the same.

    Args:
      logits: Logits `[N + U]` that a row is of the target: those of the sources first.
      mask: Mask of the valid rows, `[N + U]`.
      num: N, number of rows of the sources.
    """
    sources = trees.masked_mean(jax.nn.softplus(logits[:num]), mask[:num])
    target = trees.masked_mean(jax.nn.softplus(-logits[num:]), mask[num:])
    return 0.5 * (sources + target)


class Unlabelled(NamedTuple):
    """Inputs `[U, ...]` without labels, and the mask `[U]` of the valid ones."""

    x: PyTree
    mask: Array


def target_of(task: Task) -> Unlabelled:
    """The unlabelled inputs of the target domain of one task."""
    x = task.info.get("target")
    if x is None:
        return Unlabelled(task.query.x, task.query.mask)
    return Unlabelled(x, jnp.ones((jax.tree.leaves(x)[0].shape[0],), bool))


def counter(key: Key, made: Variables) -> dict[str, Array]:
    """The memory of a learner that counts its steps."""
    del key, made
    return {"step": jnp.zeros((), jnp.int32)}


def _with_target(examples: Examples, target: Unlabelled) -> Examples:
    """Labelled and unlabelled rows; nothing reads the labels of the latter."""
    num = target.mask.shape[0]
    join = lambda one, other: jnp.concatenate([one, other.astype(one.dtype)])
    y = jax.tree.map(lambda leaf: jnp.zeros((num, *leaf.shape[1:]), leaf.dtype), examples.y)
    return Examples(
        x=jax.tree.map(join, examples.x, target.x),
        y=jax.tree.map(join, examples.y, y),
        mask=join(examples.mask, target.mask),
    )


def _classifier(encoder: Model, num_ways: int, *, features: bool) -> Model:
    """The encoder with a linear head, which may tell the features beside the logits."""

    def init(key: Key, x: PyTree) -> Variables:
        k_body, k_head = split_key(key, 2)
        body = encoder.init(k_body, x)
        found = jax.eval_shape(lambda v: encoder.apply(v, x, train=True)[0], body)
        trees.one_array(found, "the output of the encoder", "features [N, D]")
        size = found.shape[-1]
        head = {
            "kernel": _kernel(k_head, (size, num_ways), found.dtype),
            "bias": jnp.zeros((num_ways,), found.dtype),
        }
        return Variables(params={"body": body.params, "head": head}, state=body.state)

    def of(fn: Callable) -> Callable:
        def apply(variables, x, **given):
            params = variables.params
            inner = Variables(params=params["body"], state=variables.state)
            found, state = fn(inner, x, **given)
            logits = found @ params["head"]["kernel"] + params["head"]["bias"][None]
            return (found, logits) if features else logits, state

        return apply

    split = None if encoder.split is None else of(encoder.split)
    about = f"{encoder.about}, with a linear head"
    return Model(init, of(encoder.apply), split, about)


def _mlp_init(key: Key, like: Array, width: int) -> PyTree:
    k_hidden, k_out = jax.random.split(key)
    return {
        "hidden": {
            "kernel": _kernel(k_hidden, (like.shape[0], width), like.dtype),
            "bias": jnp.zeros((width,), like.dtype),
        },
        "out": {
            "kernel": _kernel(k_out, (width, 1), like.dtype),
            "bias": jnp.zeros((1,), like.dtype),
        },
    }


def _mlp(params: PyTree, x: Array) -> Array:
    """Logits `[N]` of features `[N, D]`."""
    hidden, out = params["hidden"], params["out"]
    x = jax.nn.relu(x @ hidden["kernel"] + hidden["bias"][None])
    return (x @ out["kernel"] + out["bias"][None])[:, 0]
