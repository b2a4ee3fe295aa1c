"""Meta-Weight-Net: a small network learns to weigh an example by its loss.

J. Shu, Q. Xie, L. Yi, Q. Zhao, S. Zhou, Z. Xu, D. Meng. Meta-Weight-Net: Learning an
Explicit Mapping For Sample Weighting. NeurIPS 2019. Differences:

- The rate of the virtual step is an argument and does not follow the schedule of the outer
  optimiser, whose rate no learner sees. A schedule for it would scale the gradient of the
  weight network, of which Adam takes the direction.
- As in the released code, the virtual step is plain, without the momentum and the decay of
  the real one, and weights are not divided by their sum.
- The released code reports the best epoch on the test set. Nothing here chooses by tests.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.joint.builder import Gradient, Network, check_single, joint
from metalearn.core import checks, metrics
from metalearn.core.keys import split_key
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model, Variables
from metalearn.core.task import Task
from metalearn.core.trees import masked_mean
from metalearn.core.types import Array, Key, LossFn, PyTree, TaskChunk
from metalearn.hypergradient import lookahead
from metalearn.inner.norm import JointNorm
from metalearn.models.dense import dense, linear


def meta_weight_net(
    model: Model,
    loss_fn: LossFn,
    *,
    rate: float = 0.1,
    weights_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    hidden: int = 100,
    norm: JointNorm = "running",
    task_chunk: TaskChunk = "auto",
) -> MetaLearner:
    """One model, trained on noisy examples that a learned function of their loss weighs.

    A task is a noisy batch of n, the support set, and a clean one, the query set. The
    function V is a network with one hidden layer and an output in 0..1; see
    `loss_weights`. With the model's parameters p, a step does this:

        virtual = p - rate / n sum_i V(l_i) grad l_i
        V      <- Adam on the loss of the clean batch at the virtual parameters
        gradient of the model = 1 / n sum_i V(l_i) grad l_i, with the new V

    V and its moments are in the state and not among the params, for the model's step needs
    V as it is after its own one. So the outer optimiser moves the model alone. The losses
    that V is given are constants. If a step has several tasks, each moves V from where it
    was, and the mean of these goes on.

    Args:
      model: The network.
      loss_fn: Loss of one task, a mean over examples whose losses do not mix.
      rate: Length of the virtual step, the rate of the outer optimiser in the paper.
      weights_rate: Rate of Adam for V.
      weight_decay: Strength of the decay of V, added to its gradient.
      hidden: Units of the hidden layer of V.
      norm: Batch-norm policy: "support", "batch" or "running"; see `metalearn.inner.norm`.
      task_chunk: Tasks handled at once, or "auto".

    Returns:
      A `MetaLearner`; `adapt` takes the model as it is. A step reports `weights/mean`.

    Raises:
      ValueError: a rate is not above 0, the decay is below 0, `hidden` is below 1, or the
        loss divides by class weights.

    Example:
      >>> network = ml.from_linen(ml.models.MLP(10, widths=(50,)))
      >>> learner = ml.meta_weight_net(network, ml.losses.cross_entropy, rate=0.05)
    """
    check_single("meta_weight_net", loss_fn)
    checks.number("rate", rate, positive=True)
    checks.number("weights_rate", weights_rate, positive=True)
    checks.number("weight_decay", weight_decay)
    checks.whole_number("hidden", hidden, least=1)
    opt = optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(weights_rate))

    def memory(key: Key, made: Variables) -> dict[str, PyTree]:
        del made
        k_in, k_out = split_key(key, 2)
        net = {"in": dense(k_in, 1, hidden), "out": dense(k_out, hidden, 1)}
        return {"weights": net, "moments": opt.init(net)}

    def gradient(network: Network) -> Gradient:
        def of_task(variables: Variables, task: Task, *, key: Key):
            k_support, k_query = split_key(key, 2)
            params, state = variables.params["model"], variables.state["model"]
            net, moments = variables.state["weights"], variables.state["moments"]
            mask = task.support.mask

            def losses(params: PyTree):
                return network.losses(params, state, task.support, key=k_support)

            def clean(params: PyTree, net: PyTree):
                del net
                value, aux = network.loss(params, state, task.query, key=k_query)
                return value, aux[0]

            def weigh(net: PyTree, each: Array) -> Array:
                # Of the mean over examples. Masked ones are no examples.
                share = jnp.where(mask, 1 / jnp.maximum(jnp.sum(mask), 1), 0)
                return share.astype(each.dtype) * loss_weights(net, each)

            # The compiler finds that `lookahead` begins with the same forward pass.
            each, pull, (_, new) = jax.vjp(losses, params, has_aux=True)
            found = lookahead(losses, clean, params, net, rate=rate, weigh=weigh)
            # Adam divides by a power of a Python number.
            with jax.numpy_dtype_promotion("standard"):
                updates, moments = opt.update(found.gradient, moments, net)
                net = optax.apply_updates(net, updates)
            weights = weigh(net, each)
            (grads,) = pull(weights)
            told = metrics.of_task(loss_fn, found.outer_aux, task.query)
            report = {f"query/{name}": value for name, value in told.items()}
            report["support/loss"] = masked_mean(each, mask)
            report["weights/mean"] = jnp.sum(weights)
            kept = {"model": new, "weights": net, "moments": moments}
            return {"model": grads}, (kept, report)

        return of_task

    settings = {
        "rate": rate,
        "weights_rate": weights_rate,
        "weight_decay": weight_decay,
        "hidden": hidden,
    }
    return joint(
        "meta_weight_net",
        model,
        loss_fn,
        gradient,
        memory=memory,
        settings=settings,
        norm=norm,
        task_chunk=task_chunk,
    )


def loss_weights(net: PyTree, losses: Array) -> Array:
    """Weights that Meta-Weight-Net gives to examples, in 0..1.

    Args:
      net: Parameters of the weight network, `variables.state["weights"]` of the learner.
      losses: Loss of each example, `[N]`.

    Returns:
      `sigmoid(W_2 relu(W_1 l + b_1) + b_2)` of each loss l, `[N]`.

    Example:
      >>> net = {"in": {"w": jnp.ones((1, 2)), "b": jnp.zeros(2)},
      ...        "out": {"w": -jnp.ones((2, 1)), "b": jnp.zeros(1)}}
      >>> ml.loss_weights(net, jnp.array([0.0, 1.0])).round(2).tolist()
      [0.5, 0.12]
    """
    x = losses.astype(net["in"]["w"].dtype)[:, None]
    hidden = jax.nn.relu(linear(net["in"], x))
    return jax.nn.sigmoid(linear(net["out"], hidden))[:, 0].astype(losses.dtype)
