"""Models from `flax.linen` modules, unchanged.

A module has one training flag for all its layers. Its noise and its batch statistics are
had apart by speaking to the layers themselves: a method interceptor stills `nn.Dropout`
and tells `nn.BatchNorm` which statistics to use.
"""

from __future__ import annotations

import contextlib
import functools
import numbers
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from metalearn.core import flags as flags_
from metalearn.core import probe
from metalearn.core.adapted import Lowering, model_of
from metalearn.core.keys import of_seed
from metalearn.core.model import Model
from metalearn.core.types import Array, Key, PyTree


def from_linen(
    module: Any, *, train_kw: str | Sequence[str] | None = "auto", lower: Lowering = True
) -> Model:
    """A model from a `flax.linen` module, unchanged.

    Args:
      module: The module. If its `__call__` has an argument named `mask`, it gets the
        mask of valid rows.
      train_kw: Name of the argument that gets the training flag, or several names. "auto"
        takes every argument whose name tells its sense: `train`, `training`, `is_training`
        and the like, `deterministic` and `use_running_average`, whose truth means
        evaluation, `eval`, `inference`. Of any other name truth means training, unless
        it is given as "not NAME". `None` passes no flag. `print(model)` says which flag
        and which sense were taken.
      lower: Whether convolutions become matrix products, and pooling selections (see
        `metalearn.lowering`); "pooling" leaves convolutions as they are: faster on a
        card in TF32 for ResNet-12 with `task_chunk=1`, and where tasks share weights.

    Returns:
      A `Model`. All collections other than `params`, such as `batch_stats`, are the state,
      but for those that are only sown into. A key given to `apply` is the `dropout`
      stream. Without a key the stream repeats the same values.

    Raises:
      TypeError: `module` is not a linen module, or has no argument `train_kw`; `lower` is
        something else.
      ValueError: `init` finds that evaluation draws at random or moves the state, batch
        statistics that no training pass would move, or dropout of which no layer drops in
        any.

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
    name = type(module).__name__
    flags = flags_.find(type(module).__call__, train_kw, name)
    wrapped = _Module(module, flags, flags_.accepts(type(module).__call__, "mask"))
    # Who says that there is no flag has decided that all passes are alike.
    checked = train_kw is not None

    def init(key: Key, x: PyTree) -> tuple[PyTree, PyTree]:
        kwargs = flags_.values(flags, noise=False, batch=False)
        collections = dict(module.init(key, x, **kwargs))
        params = collections.pop("params", {})
        return params, wrapped.kept(params, collections, x)

    return model_of(
        init,
        wrapped,
        functools.partial(_check, wrapped, evaluation=checked),
        takes_mask=wrapped.has_mask,
        lower=lower,
        about=f"linen {name}, {flags_.described(flags)}",
    )


class _Module:
    """A linen module as a function of its collections.

    Attributes:
      module: The module.
      flags: Its training flags.
      has_mask: Whether it takes the mask of valid rows.
    """

    def __init__(self, module: Any, flags: Sequence[flags_.Flag], has_mask: bool):
        self.module = module
        self.flags = flags
        self.has_mask = has_mask

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
        from flax.errors import InvalidRngError

        stream = {"dropout": of_seed(0) if key is None else key}

        def go(rngs: dict, both: bool | None = None) -> tuple[PyTree, PyTree]:
            kwargs = flags_.values(self.flags, noise=noise, batch=batch, both=both)
            if self.has_mask:
                kwargs["mask"] = mask
            try:
                return self._apply(params, state, x, kwargs, rngs)
            except InvalidRngError:
                # Without a stream nothing can be drawn, so it is not given for nothing.
                # Whether evaluation depends on one is for `probe.check_evaluation`.
                if batch and not noise and both is None:
                    raise
                return self._apply(params, state, x, kwargs, _all_streams(stream))

        if noise == batch:
            return go(stream if noise else {})
        if noise:
            with _speaking_to_layers(dropout=None, batch=False):
                outputs, new = go(stream)
            if not probe.moves(state, new):
                return outputs, new
            # Some layer normalises by the batch and takes no orders: evaluation it is.
            return self(params, state, x, None, mask, noise=False, batch=False)
        with _speaking_to_layers(dropout=False, batch=True):
            try:
                return go({})
            except InvalidRngError:
                # Noise of other layers. Evaluation has none, and takes batch norm along.
                return go({}, both=False)

    def _apply(self, params, state, x, kwargs, rngs) -> tuple[PyTree, PyTree]:
        collections, mutable = {"params": params, **state}, list(state)
        if not mutable:
            return self.module.apply(collections, x, rngs=rngs, **kwargs), {}
        outputs, new = self.module.apply(
            collections, x, rngs=rngs, mutable=mutable, **kwargs
        )
        return outputs, dict(new)

    def kept(self, params: PyTree, collections: dict, x: PyTree) -> dict:
        """The collections that the module reads; sown values are results, and no state."""
        extra = [name for name in collections if name != "batch_stats"]
        return {
            name: part
            for name, part in collections.items()
            if name not in extra or self._reads(name, params, collections, x)
        }

    def _reads(self, name: str, params: PyTree, collections: dict, x: PyTree) -> bool:
        rest = {key: part for key, part in collections.items() if key != name}

        def both(params: PyTree, rest: PyTree, x: PyTree) -> list:
            return [
                self(params, rest, x, None, None, noise=on, batch=on)[0]
                for on in (True, False)
            ]

        try:
            jax.eval_shape(both, *map(probe.like, (params, rest, x)))
        except Exception:  # whatever a module says to a variable that is missing
            return True
        return False


def _all_streams(stream: dict) -> dict:
    """Streams of other names than `dropout` are made of the stream `params` by flax."""
    return {**stream, "params": jax.random.fold_in(stream["dropout"], 1)}


def _speaking_to_layers(*, dropout: bool | None, batch: bool) -> Any:
    """Within it, `nn.Dropout` and `nn.BatchNorm` do as told, whatever flag they get.

    Args:
      dropout: False for no dropout; `None` to leave it to the flag.
      batch: Whether batch norm uses statistics of the batch.
    """
    import flax.linen as nn

    def order(next_fun: Any, args: tuple, kwargs: dict, context: Any) -> Any:
        layer = context.module
        if context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        if isinstance(layer, nn.Dropout) and dropout is False:
            return args[0] if args else kwargs["inputs"]
        if not isinstance(layer, nn.BatchNorm):
            return next_fun(*args, **kwargs)
        # The flag is an argument of the call or an attribute of the layer, never both.
        if layer.use_running_average is None:
            rest = {k: v for k, v in kwargs.items() if k != "use_running_average"}
            return next_fun(*args[:1], **rest, use_running_average=not batch)
        before = layer.use_running_average
        # Past the guard of flax, which freezes a module that is set up.
        object.__setattr__(layer, "use_running_average", not batch)
        try:
            return next_fun(*args, **kwargs)
        finally:
            object.__setattr__(layer, "use_running_average", before)

    return nn.intercept_methods(order)


def _check(
    wrapped: _Module, params: PyTree, state: PyTree, x: PyTree, *, evaluation: bool
) -> None:
    """Checks what evaluation and training do to a fresh module."""
    name, flags = type(wrapped.module).__name__, wrapped.flags

    def pass_(train: bool) -> probe.Pass:
        return lambda params, state, x, key: wrapped(
            params, state, x, key, noise=train, batch=train
        )

    dropouts: dict[str, bool] = {}
    if evaluation:
        remedy = (
            f"The training flag taken is {flags_.described(flags)}. If a flag has the "
            "opposite sense, or another name, say so: from_linen(module, train_kw='NAME') "
            "if its truth means training, train_kw='not NAME' if it means evaluation, as "
            "in BatchNorm(use_running_average=not train). A module that is meant to be "
            "the same in both has train_kw=None."
        )
        with _noting_dropout() as dropouts:
            probe.check_evaluation(
                pass_(False), params, state, x, owner=name, remedy=remedy
            )
    if not dropouts and "batch_stats" not in state:
        return
    with _noting_dropout() as dropouts:
        traced = probe.trace(pass_(True), params, state, x)
    if evaluation and dropouts and not any(dropouts.values()):
        raise ValueError(
            f"{name} drops nothing in training: {', '.join(dropouts)}. The "
            f"training flag taken is {flags_.described(flags)}. Only arguments of "
            "__call__ are set, not attributes of the module and no words: write "
            "__call__(self, x, train=False) and Dropout(0.5, deterministic=not train), or "
            "name the argument: from_linen(module, train_kw='NAME'). A module whose "
            "dropout is meant to be off has train_kw=None."
        )
    if "batch_stats" in state:
        _check_statistics(name, flags, probe.moved_paths(traced, state))


def _check_statistics(
    name: str, flags: Sequence[flags_.Flag], moved: Sequence[str]
) -> None:
    if not any(path.startswith("batch_stats") for path in moved):
        raise ValueError(
            f"{name} keeps batch statistics, but no training flag moves them (taken: "
            f"{flags_.described(flags)}; no training flag of another name was found "
            "among its arguments). Name the flag: from_linen(module, train_kw='...')."
        )


@contextlib.contextmanager
def _noting_dropout() -> Iterator[dict[str, bool]]:
    """Gives a dictionary of the layers that could drop: path and rate, whether they may.

    A layer may drop if one of its calls may. A flag that is traced is no decision yet.
    """
    import flax.linen as nn

    found: dict[str, bool] = {}
    kinds = {nn.Dropout: "rate", nn.MultiHeadDotProductAttention: "dropout_rate"}

    def note(next_fun: Any, args: tuple, kwargs: dict, context: Any) -> Any:
        layer = context.module
        name = next((n for kind, n in kinds.items() if isinstance(layer, kind)), None)
        if name is None or context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        rate, told = getattr(layer, name), kwargs.get("deterministic")
        if told is None and isinstance(layer, nn.Dropout) and len(args) > 1:
            told = args[1]
        told = layer.deterministic if told is None else told
        if isinstance(rate, numbers.Real) and rate > 0:
            path = "/".join(layer.path) or type(layer).__name__
            words = f"{path} ({name} {rate:g})"
            live = isinstance(told, jax.core.Tracer) or not told
            found[words] = found.get(words, False) or live
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(note):
        yield found
