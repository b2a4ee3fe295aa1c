"""LEO: adaptation in a space of codes from which classifier weights are generated.

A. Rusu, D. Rao, J. Sygnowski, O. Vinyals, R. Pascanu, S. Osindero, R. Hadsell.
Meta-Learning with Latent Embedding Optimization. ICLR 2019.

What is computed. An encoder and a relation network give a Gaussian over the code of each
class, `z_n ~ N(mu_n, diag(sigma_n^2))`. A decoder gives one over the weights of the class,
`w_n ~ N(mu_n^w, diag((sigma_n^w)^2))`. The logits are `x . w_n`. Adaptation takes
`num_steps` of `z <- z - alpha_z grad_z L(w; support)` and decodes anew at each. Then it
takes `fine_tune_steps` of `w <- w - alpha_w grad_w L(w; support)`. With no step of
either kind it is a conditional generator of weights.

In the outer objective R is the squared distance of the cosines among the decoder's rows
from the identity. KL, the gamma term and R are means over coordinates, as in the released
code, so the printed weights hold.

What is random. In training z and, at every decode, w are drawn, by deviations like those of
the released code (`context.leo_net.draw`), and features meet dropout wherever they are
read. KL is that of the one drawn sample. Evaluation takes the means and no dropout: no key,
no chance.

What differs from the released code. Its losses of the inner loop are sums, and here they
are means over the examples. So its rates (1 and 1e-3, the defaults here) are to be
multiplied by the number of ways, 5 and 5e-3 for 5 ways; they are learned in any case. It
draws a code for each example from the distribution of its class and averages their logits,
which is `codes="example"`; the default is one code a class, as the paper writes. When its
loss is NaN it takes a step on `lambda_1` alone; here such a step is left out by the
trainer.

How the paper trains. It has Adam at 3e-4 to 9e-4 and 15 queries a class. Gradients are
clipped to 0.1, by coordinate and then by the norm of each array by itself:
`ml.apps.Outer(rate=4e-4, schedule="constant", clip_value=0.1, clip_array=0.1).build(steps)`
is such an optimiser.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.context.leo_net import (
    LeoNet,
    check_features,
    correlation_penalty,
    draw,
    drop_features,
)
from metalearn.core import checks, kinds, metrics
from metalearn.core.estimators import gradient_estimator
from metalearn.core.keys import fold_key, split_key
from metalearn.core.learner import MetaLearner, config_of
from metalearn.core.losses import cross_entropy, mask_absent, present_classes
from metalearn.core.model import Variables
from metalearn.core.task import Examples, Task
from metalearn.core.trees import masked_mean
from metalearn.core.types import Array, Key, PyTree, TaskChunk
from metalearn.inner import differentiate, unroll
from metalearn.inner.differentiate import Differentiation

Codes = Literal["class", "example"]


class Generated(NamedTuple):
    """The classifier of one task.

    Attributes:
      weights: Weights of the classes after fine-tuning, `[W, D]`.
      present: Classes with a support example, bool `[W]`.
      codes: z after the steps in the latent space, `[M, L]`; M is W or N, see `leo`.
    """

    weights: Array
    present: Array
    codes: Array


def leo(
    num_ways: int,
    *,
    latents: int = 64,
    num_steps: int = 5,
    fine_tune_steps: int = 5,
    latent_rate: float = 1.0,
    fine_tune_rate: float = 1e-3,
    dropout: float = 0.3,
    kl_weight: float = 0.5,
    encoder_penalty: float = 1e-6,
    orthogonality: float = 0.1,
    l2: float = 0.0,
    hidden: int | None = None,
    codes: Codes = "class",
    differentiation: Differentiation = "reverse",
    task_chunk: TaskChunk = "auto",
    name: str = "leo",
) -> MetaLearner:
    """Encodes a support set to codes z, adapts z, decodes it to a linear classifier.

    Inputs are fixed feature vectors `[N, D]` of a network trained before. Adaptation is by
    gradient steps on z and then on the decoded weights w. The outer objective is, in the
    mean over tasks,

        L(w; query) + beta KL(q(z) | N(0, 1)) + gamma |stop(z_K) - z_0|^2

    plus `lambda_1 |.|^2 / 2` of all kernels and `lambda_2 R`, which draws the rows of the
    decoder towards orthogonal ones.

    Args:
      num_ways: W, classes the logits have room for. Classes absent from a support set get
        a logit that never wins. Renaming classes renames the outputs, nothing else.
      latents: L, length of a code.
      num_steps: Steps in the latent space, 0 or more.
      fine_tune_steps: Steps on the weights, 0 or more.
      latent_rate: alpha_z at first; learned for every coordinate, `[L]`. The rates of
        the released code are to be multiplied by W, see the top of the file.
      fine_tune_rate: alpha_w at first; learned for every coordinate, `[D]`.
      dropout: Rate at which features are dropped, in `[0, 1)`.
      kl_weight: beta; paper: 0.001 to 1.62, by benchmark.
      encoder_penalty: gamma; paper: 1e-7 to 1e-4. Its gradient reaches the encoder and
        not the steps.
      orthogonality: lambda_2; paper: 0.0015 to 0.19.
      l2: lambda_1; paper: about 1e-9.
      hidden: Width of the relation network; 2 L when `None`.
      codes: Owner of a code, "class" or "example"; M, the number of codes, is W or N.
      differentiation: Way of derivatives through the steps, see
        `metalearn.inner.differentiate`; "first_order" drops the second derivatives.
      task_chunk: Tasks handled at once, or "auto".
      name: Name of the learner in `describe`.

    Returns:
      A `MetaLearner` whose adapted object is `Generated`. Its params are `{"model": ...,
      "latent_rate": [L], "fine_tune_rate": [D]}`.

    Raises:
      ValueError: an option is out of range; in `init`: inputs are not real `[N, D]`.

    Example:
      >>> learner = ml.leo(num_ways=5, latents=16)
      >>> learner.adapt(variables, task.support).weights  # [5, D]
    """
    how = _How(
        num_ways=num_ways,
        latents=latents,
        num_steps=num_steps,
        fine_tune_steps=fine_tune_steps,
        hidden=hidden,
        dropout=dropout,
        codes=codes,
        differentiation=differentiation,
    )
    terms = _Terms(kl_weight, encoder_penalty, orthogonality, l2)
    rates = {"latent_rate": latent_rate, "fine_tune_rate": fine_tune_rate}
    for option, value in {**terms._asdict(), **rates}.items():
        checks.number(option, value)
    differentiate.refuse_implicit("leo", differentiation)
    _check(how)

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task, key)
        x = task.support.x
        check_features(x)
        members = jnp.zeros((num_ways, x.shape[0]), x.dtype)
        net = _network(how, x.shape[-1])
        params = {
            "model": net.init(key, x, task.support.mask, members)["params"],
            "latent_rate": jnp.full((latents,), float(latent_rate), x.dtype),
            "fine_tune_rate": jnp.full((x.shape[-1],), float(fine_tune_rate), x.dtype),
        }
        return Variables(params=params, state={})

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Generated:
        del key
        kinds.adaptation(variables, support)
        return _adapt(how, variables.params, support, None)[0]

    def predict(adapted, x, *, key=None, mask=None) -> Array:
        kinds.adapted(adapted, Generated)
        return _logits(adapted.weights, adapted.present, x)

    def objective(variables: Variables, task: Task, *, key: Key):
        k_adapt, k_query = jax.random.split(key)
        query = task.query
        adapted, found, losses = _adapt(how, variables.params, task.support, k_adapt)
        outputs = predict(adapted, drop_features(k_query, query.x, dropout))
        report = metrics.of_task(cross_entropy, outputs, query)
        report = {f"query/{k}": value for k, value in report.items()} | found
        if num_steps + fine_tune_steps:
            report["support/loss"] = losses[0]
        loss = _total(terms, report, variables.params["model"])
        return loss, (variables.state, report)

    config = config_of(name, **how._asdict(), **rates, **terms._asdict())
    estimate = gradient_estimator(objective, task_chunk=task_chunk)
    made = MetaLearner(init, adapt, predict, estimate, config, cross_entropy)
    return made._replace(masks_absent=True)


class _How(NamedTuple):
    """The arguments of `leo` that say how a task is adapted to."""

    num_ways: int
    latents: int
    num_steps: int
    fine_tune_steps: int
    hidden: int | None
    dropout: float
    codes: Codes
    differentiation: Differentiation


class _Terms(NamedTuple):
    """Weights of the terms of the outer objective."""

    kl_weight: float
    encoder_penalty: float
    orthogonality: float
    l2: float


def _check(how: _How) -> None:
    """Refuses what no task can be adapted by."""
    checks.whole_number("num_ways", how.num_ways, least=2)
    checks.whole_number("latents", how.latents, least=1)
    checks.whole_number("num_steps", how.num_steps, least=0)
    checks.whole_number("fine_tune_steps", how.fine_tune_steps, least=0)
    if how.hidden is not None:
        checks.whole_number("hidden", how.hidden, least=1)
    checks.number("dropout", how.dropout)
    if how.dropout >= 1:
        raise ValueError(f"dropout is {how.dropout!r}; expected a number below 1.0.")
    checks.one_of("codes", how.codes, get_args(Codes))
    differentiate.check(how.differentiation)


def _network(how: _How, features: int) -> LeoNet:
    return LeoNet(features=features, latents=how.latents, hidden=how.hidden)


def _logits(weights: Array, present: Array, x: Array) -> Array:
    return mask_absent(x @ weights.T, present)


def _adapt(
    how: _How, params: PyTree, support: Examples, key: Key | None
) -> tuple[Generated, dict[str, Array], Array]:
    """Steps on the codes, then on the weights; random if there is a key.

    Returns:
      The classifier, the terms of the objective that know of the codes, and the support
      loss before each step.
    """
    features, dropout = support.x.shape[-1], how.dropout
    net = _network(how, features)
    offset = math.sqrt(2 / (features + how.num_ways))
    present = present_classes(support, how.num_ways)
    ways = jnp.arange(how.num_ways, dtype=support.y.dtype)
    members = (support.y[None] == ways[:, None]) & support.mask[None]
    members = members.astype(support.x.dtype)
    shots = jnp.maximum(members.sum(1), 1)
    average = members / shots[:, None]  # [W, N]
    k_encoder, k_code, k_latent, k_tune = split_key(key, 4)

    x = drop_features(k_encoder, support.x, dropout)
    made = net.apply({"params": params["model"]}, x, support.mask, average, method="encode")
    of_class, shares, valid = jnp.eye(how.num_ways, dtype=x.dtype), 1.0, present
    if how.codes == "example":
        made, valid, of_class = members.T @ made, support.mask, average
        # A class of several codes moves as fast as one of a single code.
        shares = (members.T @ shots)[:, None]
    start, kl = draw(k_code, made, 0.0)

    def weights_of(z: Array, step: Any) -> Array:
        made = net.apply({"params": params["model"]}, z, method="decode")
        return draw(fold_key(k_latent, 2 * step), made, offset)[0]

    def support_loss(weights: Array, key: Key | None) -> Array:
        x = drop_features(key, support.x, dropout)
        # Logits are linear in the weights: their mean over the codes of a class is the
        # logit of the mean.
        return cross_entropy(_logits(of_class @ weights, present, x), support)

    def latent_loss(z: Array, step: Array):
        # Two keys a step: an even one for the weights, an odd one for the dropout.
        return support_loss(weights_of(z, step), fold_key(k_latent, 2 * step + 1)), None

    def tuning_loss(weights: Array, step: Array):
        return support_loss(weights, fold_key(k_tune, 2 * step)), None

    def descend(loss: Any, at: Array, rate: Array, steps: int):
        sgd = optax.stateless(lambda grads, _: -rate[None] * shares * grads)
        return unroll(loss, at, sgd, num_steps=steps, differentiation=how.differentiation)

    path = descend(latent_loss, start, params["latent_rate"], how.num_steps)
    weights = weights_of(path.params, how.num_steps)
    tuned = descend(tuning_loss, weights, params["fine_tune_rate"], how.fine_tune_steps)
    # The encoder is pulled to where the steps end, and the steps are not pulled back.
    apart = jnp.square(jax.lax.stop_gradient(path.params) - start)
    terms = {
        "encoder/kl": masked_mean(kl, valid).mean(),
        "encoder/penalty": masked_mean(apart, valid).mean(),
    }
    losses = jnp.concatenate([path.losses, tuned.losses])
    return Generated(of_class @ tuned.params, present, path.params), terms, losses


def _total(terms: _Terms, report: dict[str, Array], net: PyTree) -> Array:
    """The outer objective of a task from its report and the networks."""
    loss = report["query/loss"] + terms.kl_weight * report["encoder/kl"]
    loss += terms.encoder_penalty * report["encoder/penalty"]
    if terms.orthogonality:
        loss += terms.orthogonality * correlation_penalty(net["decoder"]["kernel"])
    if terms.l2:
        loss += 0.5 * terms.l2 * optax.tree.norm(net, squared=True)
    return loss
