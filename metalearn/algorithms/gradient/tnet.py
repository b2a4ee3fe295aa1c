"""T-net and MT-net: a learned metric, and learned choices of what adapts.

Y. Lee, S. Choi. Gradient-Based Meta-Learning with Learned Layerwise Metric and Subspace.
ICML 2018.
"""

from __future__ import annotations

import re
from typing import Any, Literal, Unpack, get_args

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.bilevel import Hooks, Start, bilevel
from metalearn.algorithms.options import Options, takes_options
from metalearn.core import checks, trees
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples
from metalearn.core.types import Array, Key, LossFn, PyTree

ADAPTED = r"(^|/)(TDense_\d+|TConv_\d+|head)/(kernel|bias)$"
TRANSFORMS = r"(^|/)transform$"
TestMask = Literal["sample", "mean"]


@takes_options(but=("adapt_filter",))
def t_net(
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    *,
    num_steps: int = 1,
    adapt: str = ADAPTED,
    transforms: str = TRANSFORMS,
    **options: Unpack[Options],
) -> MetaLearner:
    """MAML on a network whose layers end in a square matrix that does not adapt.

    A layer is `h = sigma(T W x)`; inside, W and its bias move, outside, all is learned. A
    step on W moves the layer `A = T W` by `-alpha T T' grad_A L`: T is a metric for the
    gradients. Here, as in the released code, examples are rows and T multiplies on the
    right, `A = W T`, which moves by `-alpha grad_A L T'T`. T starts at the identity, which
    is MAML without adaptation of the norm layers.

    The paper does not speak of biases and norms; as in the released code the bias adapts
    and passes through T, the head has a T as well, the norm follows T and does not adapt.
    Its classification losses are sums over the ways: multiply its rates by their number.

    Args:
      model: A network with such layers, e.g. `ml.models.TNetMLP` or
        `ml.models.TNetConv4`.
      loss_fn: Loss of one task.
      inner_opt: An optax transformation.
      num_steps: K, inner steps; the paper uses 1 or 5.
      adapt: Regular expression found in the paths of the parameters that adapt.
      transforms: Regular expression found in the paths of the matrices T.
      **options: See `metalearn.algorithms.options.Options`.

    Returns:
      A `MetaLearner` whose adapted object is a `metalearn.inner.Adapted`.

    Raises:
      ValueError: in `init`: the model has no T, or one that would adapt.

    Example:
      >>> model = ml.from_linen(ml.models.TNetMLP())
      >>> learner = ml.t_net(model, ml.losses.mse, optax.sgd(0.01))
    """
    return bilevel(
        "t_net",
        _checked(model, adapt, transforms),
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        adapt_filter=trees.path_filter(adapt),
        **options,
    )


@takes_options(but=("adapt_filter",))
def mt_net(
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    *,
    num_steps: int = 1,
    adapt: str = ADAPTED,
    transforms: str = TRANSFORMS,
    initial_logit: float = 0.0,
    temperature: float = 1.0,
    test_mask: TestMask = "sample",
    **options: Unpack[Options],
) -> MetaLearner:
    """T-net of which every task adapts some units only, drawn with learned probabilities.

    `W' = W - alpha M o grad L`: in the mask M all weights of an output unit and its bias
    are 1 with probability `sigmoid(zeta)`, else 0, and zeta is learned outside by the
    straight-through Gumbel estimator. The mask is drawn once for a task and holds for all
    inner steps, of training and, as in the released code, of testing. It is applied to
    the updates of `inner_opt`, so units without it stay whatever the optimiser.

    The released code also has a mode with a mask for every single weight, drawn anew at
    each step, which is not offered.

    Args:
      model: A network as for `t_net`.
      loss_fn: Loss of one task.
      inner_opt: An optax transformation; learned hyper-parameters are not supported.
      num_steps: K, inner steps.
      adapt: Regular expression found in the paths of the parameters that adapt. Their last
        axis has to be the output units.
      transforms: Regular expression found in the paths of the matrices T.
      initial_logit: zeta at first; 0 lets one half of the units adapt.
      temperature: Temperature of the estimator, positive. It changes the gradient of zeta
        and no mask.
      test_mask: Mask of evaluation: "sample", for which `adapt` needs a key; or "mean", the
        probabilities themselves, which needs none.
      **options: See `metalearn.algorithms.options.Options`.

    Returns:
      A `MetaLearner`; `adapt(...).info` holds the masks of the task,
      `{"TDense_0": [out], ...}`. Its params are `{"model": ..., "inner": zetas}`, likewise.
      The metric "mask/active" is the fraction of units that adapted.

    Raises:
      ValueError: an option is out of range; in `init`, as `t_net`, or the parameters of a
        layer differ in their last axis; in `adapt`: no key for a random mask.
      TypeError: `inner_opt` is not an optax transformation.

    Example:
      >>> learner = ml.mt_net(model, ml.losses.mse, optax.sgd(0.01))
      >>> adapted = learner.adapt(variables, task.support, key=jax.random.key(0))
    """
    if not isinstance(inner_opt, optax.GradientTransformation):
        raise TypeError(
            f"inner_opt is a {type(inner_opt).__name__}; expected an optax transformation "
            "such as optax.sgd(0.01). mt_net learns the masks, and no hyper-parameters."
        )
    checks.number("temperature", temperature, positive=True)
    checks.number("initial_logit", initial_logit, signed=True)
    checks.one_of("test_mask", test_mask, get_args(TestMask))

    def initial(key: Key, params: PyTree) -> dict[str, Array]:
        del key
        zetas: dict[str, Array] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            layer = _layer_of(path)
            zeta = jnp.full(leaf.shape[-1:], initial_logit, leaf.dtype)
            if zeta.ndim != 1 or zetas.get(layer, zeta).shape != zeta.shape:
                raise ValueError(
                    f"mt_net got the parameter {trees.path_string(path)!r} of shape "
                    f"{leaf.shape}; expected output units on the last axis, as many as the "
                    f"other parameters of {layer!r} have. Leave it out of adapt=..."
                )
            zetas[layer] = zeta
        return zetas

    def start(params: PyTree, support: Examples, *, key: Key | None, train: bool) -> Start:
        del support
        if train or test_mask == "sample":
            if key is None:
                raise ValueError(
                    "mt_net draws at random which units adapt to a task; give a key: "
                    "adapt(variables, support, key=jax.random.key(0)). Or make the "
                    "learner with test_mask='mean'."
                )
            masks = draw_masks(key, params["inner"], temperature)
        else:
            masks = jax.tree.map(jax.nn.sigmoid, params["inner"])
        active = jnp.concatenate(jax.tree.leaves(masks)).mean()
        return Start(params["model"], masks, report={"mask/active": active}, info=masks)

    settings = {
        "initial_logit": float(initial_logit),
        "temperature": float(temperature),
        "test_mask": test_mask,
    }
    return bilevel(
        "mt_net",
        _checked(model, adapt, transforms),
        loss_fn,
        lambda masks: optax.chain(inner_opt, masked(masks)),
        num_steps=num_steps,
        adapt_filter=trees.path_filter(adapt),
        hooks=Hooks(inner_hparams=initial, start=start, settings=settings),
        **options,
    )


def masked(masks: dict[str, Array]) -> optax.GradientTransformation:
    """Multiplies updates by the mask `[out]` of their layer, along their last axis."""

    def one(path: Any, update: Array) -> Array:
        mask = masks[_layer_of(path)]
        return update * mask.reshape((1,) * (update.ndim - 1) + mask.shape)

    by_path = jax.tree_util.tree_map_with_path
    return optax.stateless(lambda updates, _: by_path(one, updates))


def draw_masks(key: Key, zetas: PyTree, temperature: float = 1.0) -> PyTree:
    """Zeros and ones, with the derivatives of a relaxed draw.

    The difference of two Gumbel variables is logistic, so `softmax([zeta + g1, g2])[0]` is
    `sigmoid(zeta + l)`; the mask is 1 where that exceeds one half.

    Args:
      key: Key of the draw.
      zetas: Tree of logits.
      temperature: The logits of the relaxed draw are divided by it.
    """
    leaves, treedef = jax.tree.flatten(zetas)
    keys = jax.random.split(key, len(leaves))

    def one(key: Key, zeta: Array) -> Array:
        noisy = zeta + jax.random.logistic(key, zeta.shape, zeta.dtype)
        soft = jax.nn.sigmoid(noisy / temperature)
        # Straight through: the value is the hard draw, the derivative that of the soft one.
        return (noisy > 0).astype(zeta.dtype) + (soft - jax.lax.stop_gradient(soft))

    return jax.tree.unflatten(treedef, map(one, keys, leaves))


def _layer_of(path: Any) -> str:
    """`"TDense_0"` for the key path of `"TDense_0/kernel"`."""
    return trees.path_string(path[:-1])


def _checked(model: Model, adapt: str, transforms: str) -> Model:
    """The model, whose `init` refuses to be without matrices that stay."""
    checks.model(model)

    def init(key: Key, x: PyTree) -> Variables:
        variables = model.init(key, x)
        paths = trees.leaf_paths(variables.params)
        found = [path for path in paths if re.search(transforms, path)]
        moving = [path for path in found if re.search(adapt, path)]
        if not found or moving:
            said = f"adapt={adapt!r} lets {', '.join(moving)} adapt, which must not"
            if not found:
                said = f"transforms={transforms!r} occurs in no parameter path"
            raise ValueError(
                f"{said}; expected a square matrix after each layer that does not adapt. "
                "Use a model such as ml.models.TNetMLP, or name its matrices. The paths "
                "are: " + ", ".join(paths)
            )
        return variables

    return model._replace(init=init)
