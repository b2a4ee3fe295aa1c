"""Models from `flax.nnx` modules.

Noise and batch statistics are attributes of layers there, `deterministic` and
`use_running_average`, so each is set by itself.
"""

from __future__ import annotations

import functools
import itertools
import numbers
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from metalearn.core import checks, probe
from metalearn.core import flags as flags_
from metalearn.core.adapted import Lowering, model_of
from metalearn.core.keys import of_seed
from metalearn.core.model import Model
from metalearn.core.types import Array, Key, PyTree


def from_nnx(make: Callable[[Any], Any], *, lower: Lowering = True) -> Model:
    """A model from a `flax.nnx` module.

    The module is split once into its graph and pure dictionaries of arrays. A compiled step
    therefore walks no graph of Python objects.

    Args:
      make: Function `(rngs: nnx.Rngs) -> nnx.Module`.
      lower: Whether convolutions become matrix products, and pooling selections (see
        `metalearn.lowering`); "pooling" leaves convolutions as they are: faster on a
        card in TF32 for ResNet-12 with `task_chunk=1`, and where tasks share weights.

    Returns:
      A `Model`. The argument `train` selects the `train()` or the `eval()` mode of the
      module; attributes such as `training` of modules of your own, and arguments of
      `__call__` of such names, are set as well (see `metalearn.core.flags`). A key given
      to `apply` seeds the random streams of the module. Without a key the streams repeat
      the same values.

    Raises:
      TypeError: `make` does not return an nnx module; `lower` is something else.
      ValueError: `init` finds that evaluation draws at random or moves the state. It warns
        of dropout that draws nothing in training.

    Example:
      >>> model = ml.from_nnx(lambda rngs: Net(num_ways=5, rngs=rngs))
    """
    if not callable(make) or _is_module(make):
        given, made = checks.network(make)
        raise TypeError(
            f"make is {given}; expected a function (rngs) -> nnx.Module. {made}"
        )
    wrapped = _Module(make)
    said = ", ".join(["train() and eval()", *map(str, wrapped.flags)])
    return model_of(
        lambda key, x: wrapped.init(key),
        wrapped,
        wrapped.check,
        takes_mask=wrapped.takes_mask,
        lower=lower,
        about=f"nnx {wrapped.name}, {said}",
    )


def _is_module(make: Any) -> bool:
    """Whether it is a module that was made already, of flax.nnx or of flax.linen."""
    from flax import linen, nnx

    return isinstance(make, (nnx.Module, linen.Module))


class _Module:
    """An nnx module as a function of its arrays.

    Attributes:
      make: Function `rngs -> module`.
      name: Name of its class.
      flags: Training flags among the arguments of its `__call__`.
      takes_mask: Whether it takes the mask of valid rows.
    """

    def __init__(self, make: Callable[[Any], Any]):
        from flax import nnx

        self.make = make
        # The graph needs shapes only, so no parameter is computed here.
        module = nnx.eval_shape(lambda: self._build(of_seed(0)))
        self.name = type(module).__name__
        call = type(module).__call__
        self.flags = flags_.find(call, "auto", self.name)
        self.takes_mask = flags_.accepts(call, "mask")
        self._dropout = _dropout(module)
        self._graphs = {}
        for noise, batch, both in itertools.product((False, True), repeat=3):
            module.train() if both else module.eval()
            _set_modes(module, noise=noise, batch=batch, both=both)
            graph, *self._like = self._parts(module)
            self._graphs[noise, batch, both] = graph

    def check(self, params: PyTree, state: PyTree, x: PyTree) -> None:
        """Refuses a module that draws at random or moves its state in evaluation."""
        remedy = (
            "The layers are in the mode eval(), and the training flag taken is "
            f"{flags_.described(self.flags)}. Leave the mode to the layers, as in "
            "self.dropout(x), or take the argument `train` and pass it on: "
            "deterministic=not train, use_running_average=not train."
        )
        evaluation = functools.partial(self, noise=False, batch=False)
        probe.check_evaluation(evaluation, params, state, x, owner=self.name, remedy=remedy)
        if not self._dropout:
            return
        training = functools.partial(self, noise=True, batch=True)
        if not probe.trace(training, params, state, x).draws():
            warnings.warn(
                f"{self.name} draws nothing at random in training, though it has "
                f"{', '.join(self._dropout)}. {remedy}",
                stacklevel=2,
            )

    def _build(self, key: Key) -> Any:
        from flax import nnx

        module = self.make(nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise TypeError(
                f"from_nnx: make returned a {type(module).__name__}; expected a "
                "flax.nnx.Module. For a linen module use from_linen."
            )
        return module

    def _parts(self, module: Any) -> tuple:
        from flax import nnx

        return nnx.split(module, nnx.Param, nnx.RngState, ...)

    def init(self, key: Key) -> tuple[PyTree, PyTree]:
        """Params and state of a fresh module."""
        from flax import nnx

        _, params, rng, state = self._parts(self._build(key))
        hidden = nnx.to_pure_dict(state)
        streams = nnx.to_pure_dict(rng)
        carried = {"nnx": hidden} if hidden else {}
        if streams:
            carried["rng"] = streams
        return nnx.to_pure_dict(params), carried

    def __call__(
        self,
        params: PyTree,
        state: PyTree,
        x: PyTree,
        key: Key | None,
        mask: Array | None = None,
        *,
        noise: bool,
        batch: bool,
    ) -> tuple[PyTree, PyTree]:
        """Outputs and state of one pass."""
        run = functools.partial(
            self._pass, params, state, x, key, mask, noise=noise, batch=batch
        )
        outputs, new, drawn = run(both=noise or batch)
        # A flag of both means both. Where a layer draws that should not, or moves its
        # averages, evaluation does neither, and layers of nnx are spoken to by themselves.
        hidden = state.get("nnx", {})
        if noise != batch and (drawn if batch else probe.moves(hidden, new)):
            outputs, new, _ = run(both=False)
        return outputs, {**state, "nnx": new} if "nnx" in state else state

    def _pass(
        self,
        params: PyTree,
        state: PyTree,
        x: PyTree,
        key: Key | None,
        mask: Array | None,
        *,
        noise: bool,
        batch: bool,
        both: bool,
    ) -> tuple[PyTree, PyTree, bool]:
        """Outputs, state, and whether a random stream was drawn from."""
        from flax import nnx

        params_like, rng_like, state_like = self._like
        streams, hidden = state.get("rng", {}), state.get("nnx", {})
        start = _filled(rng_like, _reseeded(streams, key))
        before = _values(start)  # the merged module moves the streams in place
        module = nnx.merge(
            self._graphs[noise, batch, both],
            _filled(params_like, params),
            start,
            _filled(state_like, hidden),
        )
        given: dict[str, Any] = flags_.values(
            self.flags, noise=noise, batch=batch, both=both
        )
        if self.takes_mask:
            given["mask"] = mask
        outputs = module(x, **given)
        _, _, rng, new = self._parts(module)
        pairs = zip(before, _values(rng), strict=True)
        drawn = any(old is not now for old, now in pairs)
        # What the pass has sown is a result, and no state.
        return outputs, _as_before(hidden, nnx.to_pure_dict(new)), drawn


def _values(state: Any) -> list[Any]:
    """The arrays of an nnx state."""
    from flax import nnx

    return jax.tree.leaves(nnx.to_pure_dict(state))


def _set_modes(module: Any, *, noise: bool, batch: bool, both: bool) -> None:
    """Tells every layer whether to draw, and which statistics to use."""
    from flax import nnx

    for _, layer in nnx.iter_modules(module):
        for name in [*vars(layer), "deterministic", "use_running_average"]:
            flag = flags_.known(name)
            # Flags of layers are plain values; `train` and `eval` are methods.
            value = getattr(layer, name, None)
            if flag is not None and hasattr(layer, name) and _is_plain(value):
                setattr(layer, name, flag.value(noise=noise, batch=batch, both=both))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, np.bool_))


def _dropout(module: Any) -> list[str]:
    """Paths and rates of the layers of a module that could drop a part."""
    from flax import nnx

    kinds = {nnx.Dropout: "rate", nnx.MultiHeadAttention: "dropout_rate"}
    found = [
        (path, name, getattr(layer, name))
        for path, layer in nnx.iter_modules(module)
        for kind, name in kinds.items()
        if isinstance(layer, kind)
    ]
    return [
        f"{'/'.join(map(str, path))} ({name} {rate:g})"
        for path, name, rate in found
        if isinstance(rate, numbers.Real) and 0 < rate < 1
    ]


def _as_before(old: Any, new: Any) -> Any:
    """The part of a dictionary that was there before."""
    if not isinstance(old, Mapping):
        return new
    return {name: _as_before(part, new[name]) for name, part in old.items()}


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
            fresh_key = next(keys)  # of stacked layers each has one
            return jax.random.split(fresh_key, leaf.shape) if leaf.shape else fresh_key
        # A stream is a key and a count; a new key starts to count from 0.
        return leaf * 0

    return jax.tree.unflatten(treedef, [fresh(leaf) for leaf in leaves])
