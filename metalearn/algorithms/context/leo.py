"""LEO: adaptation in a space of codes from which classifier weights are generated.

A. Rusu, D. Rao, J. Sygnowski, O. Vinyals, R. Pascanu, S. Osindero, R. Hadsell.
Meta-Learning with Latent Embedding Optimization. ICLR 2019.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

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
from metalearn.core import checks, metrics
from metalearn.core.estimators import gradient_estimator
from metalearn.core.learner import MetaLearner, config_of
from metalearn.core.losses import cross_entropy, mask_absent, present_classes
from metalearn.core.model import Variables
from metalearn.core.task import Examples, Task
from metalearn.core.trees import masked_mean
from metalearn.core.types import Array, Key, PyTree
from metalearn.inner import unroll
from metalearn.inner.differentiate import check as check_differentiation
from metalearn.inner.differentiate import refuse_implicit


class Generated(NamedTuple):
    """The classifier of one task.

    Attributes:
      weights: `[W, D]`, after fine-tuning.
      present: Bool `[W]`, classes with a support example.
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
    codes: str = "class",
    differentiation: str = "reverse",
    task_chunk: int | str = "auto",
    name: str = "leo",
) -> MetaLearner:
    """Encodes a support set to codes z, adapts z, decodes it to a linear classifier.

    Inputs are fixed feature vectors `[N, D]` of a network trained before. An encoder and
    a relation network give a Gaussian over the code of each class, `z_n ~ N(mu_n,
    diag(sigma_n^2))`; a decoder gives one over its weights, `w_n ~ N(mu_n^w,
    diag((sigma_n^w)^2))`; the logits are `x . w_n`. Adaptation: `num_steps` of `z <- z -
    alpha_z grad_z L(w; support)`, decoding anew at each, then `fine_tune_steps` of
    `w <- w - alpha_w grad_w L(w; support)`. Outer objective: the mean over tasks of

        L(w; query) + beta KL(q(z) | N(0, 1)) + gamma |stop(z_K) - z_0|^2

    plus `lambda_1 |.|^2 / 2` of all kernels and `lambda_2 R`, the squared distance of the
    cosines among the decoder's rows from the identity. KL, the gamma term and R are means
    over coordinates, as in the released code, so the printed weights hold.

    In training z and, at every decode, w are drawn, by deviations like those of the
    released code (`context.leo_net.draw`), and features meet dropout wherever they
    are read. KL is that of the one drawn sample. Evaluation takes the means and no
    dropout: no key, no chance.

    Differs from the released code: losses of the inner loop are means and not sums, so
    its rates (1 and 1e-3) are to be multiplied by the number of ways; they are learned in
    any case. It draws a code for each example from the distribution of its class and
    averages their logits, `codes="example"`; the default is one a class, as the paper
    writes. When its loss is NaN it takes a step on `lambda_1` alone; here such a step is
    left out by the trainer.

    Args:
      num_ways: W, classes the logits have room for. Classes absent from a support set get
        a logit that never wins. Names of classes do not matter: renaming them renames the
        outputs.
      latents: L, length of a code.
      num_steps: Steps in the latent space, 0 or more. With neither these nor fine-tuning
        it is a conditional generator of weights.
      fine_tune_steps: Steps on the weights, 0 or more.
      latent_rate: alpha_z at first; learned for every coordinate, `[L]`.
      fine_tune_rate: alpha_w at first; learned for every coordinate, `[D]`.
      dropout: Rate at which features are dropped, in `[0, 1)`.
      kl_weight: beta; paper: 0.001 to 1.62, by benchmark.
      encoder_penalty: gamma; paper: 1e-7 to 1e-4. Its gradient reaches the encoder and
        not the steps.
      orthogonality: lambda_2; paper: 0.0015 to 0.19.
      l2: lambda_1; paper: about 1e-9.
      hidden: Width of the relation network; 2 L when `None`.
      codes: "class" or "example": one code for each, M is W or N.
      differentiation: See `metalearn.inner.differentiate`; "first_order" drops the second
        derivatives.
      task_chunk: Tasks handled at once, or "auto".
      name: What `describe` calls it.

    Returns:
      A `MetaLearner` whose adapted object is `Generated`. Its params are `{"model": ...,
      "latent_rate": [L], "fine_tune_rate": [D]}`. The paper trains with Adam at 3e-4 to
      9e-4 and gradients clipped to 0.1, by coordinate and then by norm:
      `optax.chain(optax.clip(0.1), optax.clip_by_global_norm(0.1), optax.adam(4e-4))`.

    Raises:
      ValueError: an option is out of range; in `init`: inputs are not real `[N, D]`.

    Example:
      >>> learner = ml.leo(num_ways=5, latents=16)
      >>> learner.adapt(variables, task.support).weights  # [5, D]
    """
    checks.whole_number("num_ways", num_ways, least=2)
    checks.whole_number("latents", latents, least=1)
    checks.whole_number("num_steps", num_steps, least=0)
    checks.whole_number("fine_tune_steps", fine_tune_steps, least=0)
    if hidden is not None:
        checks.whole_number("hidden", hidden, least=1)
    weights_of_terms = dict(
        kl_weight=kl_weight,
        encoder_penalty=encoder_penalty,
        orthogonality=orthogonality,
        l2=l2,
    )
    rates = dict(latent_rate=latent_rate, fine_tune_rate=fine_tune_rate, dropout=dropout)
    for option, value in {**weights_of_terms, **rates}.items():
        checks.number(option, value)
    if dropout >= 1:
        raise ValueError(f"dropout is {dropout!r}; expected a number below 1.0.")
    if codes not in ("class", "example"):
        raise ValueError(f"codes is {codes!r}; expected 'class' or 'example'.")
    refuse_implicit("leo", differentiation)
    check_differentiation(differentiation)

    def network(features: int) -> LeoNet:
        return LeoNet(features=features, latents=latents, hidden=hidden)

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task)
        x = task.support.x
        check_features(x)
        members = jnp.zeros((num_ways, x.shape[0]), x.dtype)
        made = network(x.shape[-1]).init(key, x, task.support.mask, members)["params"]
        params = {
            "model": made,
            "latent_rate": jnp.full((latents,), float(latent_rate), x.dtype),
            "fine_tune_rate": jnp.full((x.shape[-1],), float(fine_tune_rate), x.dtype),
        }
        return Variables(params=params, state={})

    def run(params: PyTree, support: Examples, key: Key | None):
        """The classifier and the terms of the objective; random if there is a key."""
        features = support.x.shape[-1]
        net = network(features)
        offset = math.sqrt(2 / (features + num_ways))
        present = present_classes(support, num_ways)
        ways = jnp.arange(num_ways, dtype=support.y.dtype)
        members = (support.y[None] == ways[:, None]) & support.mask[None]
        members = members.astype(support.x.dtype)
        shots = jnp.maximum(members.sum(1), 1)
        average = members / shots[:, None]  # [W, N]
        k_encoder, k_code, k_latent, k_tune = _split(key, 4)

        x = drop_features(k_encoder, support.x, dropout)
        made = net.apply(
            {"params": params["model"]}, x, support.mask, average, method="encode"
        )
        of_class, shares, valid = jnp.eye(num_ways, dtype=x.dtype), 1.0, present
        if codes == "example":
            made, valid, of_class = members.T @ made, support.mask, average
            # A class of several codes moves as fast as one of a single code.
            shares = (members.T @ shots)[:, None]
        start, kl = draw(k_code, made, 0.0)

        def weights_of(z: Array, step: Any) -> Array:
            made = net.apply({"params": params["model"]}, z, method="decode")
            return draw(_fold(k_latent, step, 0), made, offset)[0]

        def support_loss(weights: Array, key: Key | None) -> Array:
            x = drop_features(key, support.x, dropout)
            # Logits are linear in the weights: their mean over the codes of a class is
            # the logit of the mean.
            return cross_entropy(logits(of_class @ weights, present, x), support)

        def latent_loss(z: Array, step: Array):
            return support_loss(weights_of(z, step), _fold(k_latent, step, 1)), None

        def tuning_loss(weights: Array, step: Array):
            return support_loss(weights, _fold(k_tune, step, 0)), None

        def descend(loss: Any, at: Array, rate: Array, steps: int):
            sgd = optax.stateless(lambda grads, _: -rate[None] * shares * grads)
            how = dict(num_steps=steps, differentiation=differentiation)
            return unroll(loss, at, sgd, **how)

        path = descend(latent_loss, start, params["latent_rate"], num_steps)
        weights = weights_of(path.params, num_steps)
        tuned = descend(tuning_loss, weights, params["fine_tune_rate"], fine_tune_steps)
        adapted = Generated(of_class @ tuned.params, present, path.params)
        apart = jnp.square(jax.lax.stop_gradient(path.params) - start)
        losses = jnp.concatenate([path.losses, tuned.losses])
        terms = {
            "encoder/kl": masked_mean(kl, valid).mean(),
            "encoder/penalty": masked_mean(apart, valid).mean(),
        }
        return adapted, terms, losses

    def logits(weights: Array, present: Array, x: Array) -> Array:
        return mask_absent(x @ weights.T, present)

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Generated:
        del key
        checks.one_set(support, "support")
        return run(variables.params, support, None)[0]

    def predict(adapted, x, *, key=None, mask=None) -> Array:
        del key, mask
        return logits(adapted.weights, adapted.present, x)

    def objective(variables: Variables, task: Task, *, key: Key):
        k_adapt, k_query = jax.random.split(key)
        params, query = variables.params, task.query
        adapted, terms, losses = run(params, task.support, k_adapt)
        outputs = predict(adapted, drop_features(k_query, query.x, dropout))
        report = metrics.of_task(cross_entropy, outputs, query)
        report = {f"query/{k}": value for k, value in report.items()} | terms
        if num_steps + fine_tune_steps:
            report["support/loss"] = losses[0]
        loss = report["query/loss"] + kl_weight * terms["encoder/kl"]
        loss += encoder_penalty * terms["encoder/penalty"]
        if orthogonality:
            rows = params["model"]["decoder"]["kernel"]
            loss += orthogonality * correlation_penalty(rows)
        if l2:
            loss += 0.5 * l2 * optax.tree.norm(params["model"], squared=True)
        return loss, (variables.state, report)

    settings = dict(
        num_ways=num_ways,
        latents=latents,
        num_steps=num_steps,
        fine_tune_steps=fine_tune_steps,
        hidden=hidden,
        codes=codes,
        differentiation=differentiation,
    )
    config = config_of(name, **settings, **rates, **weights_of_terms)
    estimate = gradient_estimator(objective, task_chunk=task_chunk)
    return MetaLearner(init, adapt, predict, estimate, config)


def _split(key: Key | None, num: int) -> list:
    return [None] * num if key is None else list(jax.random.split(key, num))


def _fold(key: Key | None, step: Any, use: int) -> Key | None:
    """The key of one use in a step, of two."""
    return None if key is None else jax.random.fold_in(key, 2 * step + use)
