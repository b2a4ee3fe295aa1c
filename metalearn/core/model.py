"""Models as two pure functions, and adapters from plain functions, linen and nnx.

Every adapter runs the model through `metalearn.lowering`, so that convolutions under
per-task weights become matrix products instead of grouped convolutions.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from metalearn import lowering
from metalearn.core.types import Array, Key, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Variables:
    """All arrays of a model or a learner.

    Attributes:
      params: Parameters, which the outer optimiser learns.
      state: Arrays that are carried along and not differentiated, e.g. running statistics.
        A model without state has `{}`, never `None` or `()`.
    """

    params: PyTree
    state: PyTree


class ApplyFn(Protocol):
    def __call__(
        self,
        variables: Variables,
        x: PyTree,
        *,
        key: Key | None = None,
        train: bool = False,
        mask: Array | None = None,
    ) -> tuple[PyTree, PyTree]:
        """Returns `(outputs, state)`; the state is unchanged unless `train` is true."""


class Model(NamedTuple):
    """A network as two pure functions over one batch of inputs.

    Attributes:
      init: Function `(key, x) -> Variables` for inputs `x` `[N, ...]`.
      apply: Function `(variables, x, *, key=None, train=False, mask=None) -> (outputs,
        state)`. The mask, bool `[N]`, marks valid rows for layers that look across
        examples.
    """

    init: Callable[[Key, PyTree], Variables]
    apply: ApplyFn


def _accepts(fn: Callable, name: str) -> bool:
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return False
    return name in parameters


def _lowered(
    apply: Callable, variables: Variables, x: PyTree, key: Key | None, mask: Any
) -> tuple[PyTree, PyTree]:
    return lowering.lower(apply)(variables, x, key, mask)


def from_apply_fn(
    init: Callable[[Key, PyTree], PyTree],
    apply: Callable[..., PyTree],
    *,
    lower: bool = True,
) -> Model:
    """A model without state from two plain functions.

    Args:
      init: Function `(key, x) -> params`.
      apply: Function `(params, x) -> outputs`, which may also take `key`, `train` or
        `mask`.
      lower: Whether convolutions become matrix products (see `metalearn.lowering`).

    Returns:
      A `Model` whose state is `{}`.

    Example:
      >>> model = ml.from_apply_fn(
      ...     lambda key, x: {"w": jax.random.normal(key, x.shape[-1:])},
      ...     lambda params, x: x @ params["w"],
      ... )
    """
    for name, fn in (("init", init), ("apply", apply)):
        if not callable(fn):
            raise TypeError(f"{name} is a {type(fn).__name__}; expected a function.")
    optional = [name for name in ("key", "train", "mask") if _accepts(apply, name)]

    def model_init(key: Key, x: PyTree) -> Variables:
        return Variables(params=init(key, x), state={})

    def model_apply(variables, x, *, key=None, train=False, mask=None):
        def run(variables, x, key, mask):
            given = {"key": key, "train": train, "mask": mask}
            return apply(variables.params, x, **{k: given[k] for k in optional})

        outputs = (
            _lowered(run, variables, x, key, mask)
            if lower
            else run(variables, x, key, mask)
        )
        return outputs, variables.state

    return Model(model_init, model_apply)


def _with_a_row(apply: ApplyFn) -> ApplyFn:
    """The same function, in which all rows count as valid if training has no valid row.

    Batch norm divides by the number of valid rows. Without a valid row the outputs, the
    state and the gradients would be NaN, and no mask of a loss removes NaN. The state is
    then finite but meaningless; `metalearn.inner.norm` discards it.
    """

    def guarded(variables, x, *, key=None, train=False, mask=None):
        if train and mask is not None and jax.tree.leaves(variables.state):
            # By value and not by `if`: inside `jit` and `vmap` the mask has no value in
            # Python.
            mask = jnp.where(jnp.any(mask), mask, True)
        return apply(variables, x, key=key, train=train, mask=mask)

    return guarded


TRAIN_FLAGS = ("train", "training", "is_training")


def from_linen(module: Any, *, train_kw: str | None = "auto", lower: bool = True):
    """A model from a `flax.linen` module, unchanged.

    Args:
      module: The module. If its `__call__` has an argument named `mask`, it gets the
        mask of valid rows.
      train_kw: Name of the argument that gets the training flag. "auto" looks for `train`,
        `training` and `is_training`; `None` passes no flag.
      lower: Whether convolutions become matrix products (see `metalearn.lowering`).

    Returns:
      A `Model`. All collections other than `params`, such as `batch_stats`, are the state.
      A key given to `apply` is the `dropout` stream. Without a key the stream repeats the
      same values.

    Raises:
      TypeError: `module` is not a linen module, or has no argument `train_kw`.
      ValueError: `init` finds batch statistics that no training pass would move.

    Example:
      >>> model = ml.from_linen(MyConvNet(num_ways=5))
    """
    # Imported here, so that models of plain functions need no flax.
    import flax.linen as nn

    if not isinstance(module, nn.Module):
        raise TypeError(
            f"from_linen got a {type(module).__name__}; expected an instance of a "
            "flax.linen.Module (call the class first: from_linen(Net())). For an nnx "
            "module use from_nnx."
        )
    call = type(module).__call__
    if train_kw == "auto":
        train_kw = next((name for name in TRAIN_FLAGS if _accepts(call, name)), None)
    elif train_kw is not None and not _accepts(call, train_kw):
        raise TypeError(
            f"train_kw is {train_kw!r}, but {type(module).__name__}.__call__ takes "
            f"{', '.join(list(inspect.signature(call).parameters)[1:])}. Name one of "
            "them, or give train_kw=None for a module without a training flag."
        )
    has_train = train_kw is not None
    has_mask = _accepts(call, "mask")

    def model_init(key: Key, x: PyTree) -> Variables:
        kwargs = {train_kw: False} if has_train else {}
        collections = dict(module.init(key, x, **kwargs))
        params = collections.pop("params", {})
        if "batch_stats" in collections and not has_train:
            check_moves(params, collections, x)
        return Variables(params=params, state=collections)

    def check_moves(params: PyTree, state: PyTree, x: PyTree) -> None:
        def after(stats: PyTree) -> PyTree:
            variables = {"params": params, **state, "batch_stats": stats}
            return module.apply(variables, x, mutable=["batch_stats"])[1]

        # Statistics that come out as they went in are traced to the inputs themselves.
        jaxpr = jax.make_jaxpr(after)(state["batch_stats"]).jaxpr
        if all(out in jaxpr.invars for out in jaxpr.outvars):
            raise ValueError(
                f"{type(module).__name__} keeps batch statistics, but no training flag "
                f"was found among its arguments (looked for {', '.join(TRAIN_FLAGS)}), "
                "so they would never move. Name the flag: from_linen(module, "
                "train_kw='...')."
            )

    def model_apply(variables, x, *, key=None, train=False, mask=None):
        def run(variables, x, key, mask):
            kwargs = {train_kw: train} if has_train else {}
            if has_mask:
                kwargs["mask"] = mask
            # Training asks for a dropout stream even where the caller gives no key.
            rngs = {}
            if train or key is not None:
                rngs = {"dropout": jax.random.key(0) if key is None else key}
            collections = {"params": variables.params, **variables.state}
            mutable = list(variables.state)
            if not mutable:
                return module.apply(collections, x, rngs=rngs, **kwargs), {}
            outputs, new = module.apply(
                collections, x, rngs=rngs, mutable=mutable, **kwargs
            )
            return outputs, dict(new) if train else variables.state

        if lower:
            return _lowered(run, variables, x, key, mask)
        return run(variables, x, key, mask)

    return Model(model_init, _with_a_row(model_apply) if has_mask else model_apply)


def _filled(like: Any, values: Mapping) -> Any:
    """An nnx state like `like` that holds the values of a dictionary."""
    from flax import nnx

    def value_at(path: tuple) -> Any:
        node = values
        for part in path:
            node = node[part]
        return node

    pairs = nnx.to_flat_state(like)
    return nnx.from_flat_state([(path, var.replace(value_at(path))) for path, var in pairs])


def _reseeded(streams: PyTree, key: Key | None) -> PyTree:
    """Random streams that start from a key; those of before without one."""
    if key is None:
        return streams
    leaves, treedef = jax.tree.flatten(streams)
    keys = iter(jax.random.split(key, max(len(leaves), 1)))

    def fresh(leaf: Array) -> Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return next(keys)
        # A stream is a key and a count; a new key starts to count from 0.
        return leaf * 0

    return jax.tree.unflatten(treedef, [fresh(leaf) for leaf in leaves])


def from_nnx(make: Callable[[Any], Any], *, lower: bool = True) -> Model:
    """A model from a `flax.nnx` module.

    The module is split once into its graph and pure dictionaries of arrays. A compiled step
    therefore walks no graph of Python objects.

    Args:
      make: Function `(rngs: nnx.Rngs) -> nnx.Module`.
      lower: Whether convolutions become matrix products (see `metalearn.lowering`).

    Returns:
      A `Model`. The argument `train` selects the `train()` or the `eval()` mode of the
      module. A key given to `apply` seeds the random streams of the module. Without a key
      the streams repeat the same values.

    Raises:
      TypeError: `make` does not return an nnx module.

    Example:
      >>> model = ml.from_nnx(lambda rngs: Net(num_ways=5, rngs=rngs))
    """
    from flax import nnx

    def build(key: Key) -> Any:
        module = make(nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise TypeError(
                f"from_nnx: make returned a {type(module).__name__}; expected a "
                "flax.nnx.Module. For a linen module use from_linen."
            )
        return module

    def parts(module: Any):
        return nnx.split(module, nnx.Param, nnx.RngState, ...)

    # The graph needs shapes only, so no parameter is computed here.
    abstract = nnx.eval_shape(lambda: build(jax.random.key(0)))
    takes_mask = _accepts(type(abstract).__call__, "mask")
    abstract.eval()
    graph_eval, params_like, rng_like, state_like = parts(abstract)
    abstract.train()
    graph_train = parts(abstract)[0]

    def model_init(key: Key, x: PyTree) -> Variables:
        del x
        _, params, rng, state = parts(build(key))
        hidden = nnx.to_pure_dict(state)
        streams = nnx.to_pure_dict(rng)
        carried = {"nnx": hidden} if hidden else {}
        if streams:
            carried["rng"] = streams
        return Variables(params=nnx.to_pure_dict(params), state=carried)

    def model_apply(variables, x, *, key=None, train=False, mask=None):
        def run(variables, x, key, mask):
            carried = variables.state
            module = nnx.merge(
                graph_train if train else graph_eval,
                _filled(params_like, variables.params),
                _filled(rng_like, _reseeded(carried.get("rng", {}), key)),
                _filled(state_like, carried.get("nnx", {})),
            )
            outputs = module(x, mask=mask) if takes_mask else module(x)
            # In evaluation the state has to stay as it is, also where the module counts
            # calls.
            if not train or "nnx" not in carried:
                return outputs, carried
            new = nnx.to_pure_dict(parts(module)[3])
            return outputs, {**carried, "nnx": new}

        if lower:
            return _lowered(run, variables, x, key, mask)
        return run(variables, x, key, mask)

    return Model(model_init, _with_a_row(model_apply) if takes_mask else model_apply)
