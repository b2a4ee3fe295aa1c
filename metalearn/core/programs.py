"""Compiled programs, kept as long as the record of functions that they belong to.

A compiled program of a learner takes tens of megabytes. A cache that is keyed by learners
would hold the program, and through it the learner, for ever; a dictionary with weak keys
would too, because a program refers to its learner. So programs are attributes of a
function of the learner: both are a circle that the garbage collector finds.
"""

from __future__ import annotations

import functools
import gc
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Value = TypeVar("Value")

# Learners and trainers, of those in use, whose programs are kept: the latest.
MOST_OWNERS = 64
# Programs of one owner that are kept: the latest. Another sampler is another program.
MOST_PROGRAMS = 32
# The collector counts Python objects, and the megabytes behind programs are none. So it
# is called after every few new owners; each of them compiles for seconds.
COLLECT_EVERY = 8

_ATTRIBUTE = "_metalearn_programs"
_LOCK = threading.RLock()


class _Store(OrderedDict):
    """Programs of one owner, the latest last."""

    def __reduce__(self) -> tuple:
        # A copied or pickled function starts without programs.
        return (_Store, ())

    __hash__ = object.__hash__  # by identity, for weak references
    __eq__ = object.__eq__


_owners: OrderedDict[int, weakref.ref[_Store]] = OrderedDict()
_ownerless = _Store()
_made = 0


def kept_with_owner(make: Callable[..., Value]) -> Callable[..., Value]:
    """A cache of `make(owner, *settings)` whose entries are released with the owner.

    Args:
      make: Function whose first argument is a record of functions, such as a
        `MetaLearner`, and whose further arguments are hashable.

    Returns:
      The function with a cache. Equal owners and settings give the same value again, for
      the latest `MOST_OWNERS` owners and `MOST_PROGRAMS` values of each.
    """

    @functools.wraps(make)
    def found(owner: tuple, *settings: Any) -> Value:
        key = (make, owner, *settings)
        with _LOCK:
            store = _store_of(owner)
            if key in store:
                store.move_to_end(key)
                return store[key]
        value = make(owner, *settings)
        with _LOCK:
            store[key] = value
            while len(store) > MOST_PROGRAMS:
                store.popitem(last=False)
        return value

    return found


# Without these the compiler of a CUDA card compiles each fusion by two emitters and each
# product by dozens of tiles, and times them. On an H200 the first step of MAML was then not
# ready within two minutes; what the first search finds is no faster on an H100, what the
# second finds was not timed (benchmarks/NOTES.md, "On a card"). A flag in XLA_FLAGS is the
# user's word.
ON_A_CARD = {
    "xla_gpu_experimental_enable_fusion_autotuner": False,
    "xla_gpu_enable_triton_gemm": False,
}


def compiled(fn: Callable, **options: Any) -> Callable:
    """`jax.jit` with what the compiler of the default backend is told.

    Args:
      fn: Function that is called neither by another compiled one nor under `grad`, where
        jax takes no options.
      **options: Further arguments of `jax.jit`.
    """
    return jax.jit(fn, compiler_options=compiler_options(), **options)


def compiler_options() -> dict[str, Any] | None:
    """Options of the compiler for the default backend, of those that it knows."""
    if not _on_cuda():
        return None
    flags = os.environ.get("XLA_FLAGS", "").split()
    given = {flag.lstrip("-").partition("=")[0] for flag in flags}
    return {k: v for k, v in ON_A_CARD.items() if k not in given and _knows(k, v)} or None


def _on_cuda() -> bool:
    if jax.default_backend() != "gpu":
        return False
    return "cuda" in jax.devices()[0].client.platform_version.lower()


@functools.cache
def _knows(name: str, value: Any) -> bool:
    """Whether the compiler takes an option: another release, another list of them."""
    nothing = jax.jit(lambda: jnp.zeros(()), compiler_options={name: value})
    try:
        nothing.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True


def clear_caches() -> None:
    """Releases all compiled programs: those of this library and those of jax.

    Programs are released with their learner anyway. This is for a process that keeps
    learners whose programs it needs no more. What is called again compiles again.

    Example:
      >>> ml.clear_caches()
    """
    with _LOCK:
        for reference in list(_owners.values()):
            if (store := reference()) is not None:
                store.clear()
        _ownerless.clear()
    jax.clear_caches()
    gc.collect()


def _store_of(owner: tuple) -> _Store:
    """The programs of an owner; made on the first call."""
    global _made
    # `estimate` and `step` are made for each learner and each trainer, whereas `init` may
    # be the function of a model, and `loss_fn` one of the user, that many learners share.
    first = (getattr(owner, name, None) for name in ("step", "estimate"))
    holder = next(filter(_is_own, (*first, *reversed(owner))), None)
    if holder is None:
        return _ownerless
    store = vars(holder).get(_ATTRIBUTE)
    if store is None:
        _made += 1
        if _made % COLLECT_EVERY == 0:
            gc.collect()
        store = _Store()
        setattr(holder, _ATTRIBUTE, store)
    _note_use(store)
    return store


def _note_use(store: _Store) -> None:
    """Puts a store last, and empties the first where there are too many."""
    known = _owners.get(id(store))
    if known is None or known() is not store:  # a number is used again after a release
        for number in [n for n, reference in _owners.items() if reference() is None]:
            del _owners[number]
        _owners[id(store)] = weakref.ref(store)
    _owners.move_to_end(id(store))
    while len(_owners) > MOST_OWNERS:
        oldest = _owners.popitem(last=False)[1]()
        if oldest is not None:
            oldest.clear()


def _is_own(fn: Any) -> bool:
    """Whether a function was made for its record and dies with it.

    A function of a module lives for ever, and a method is made anew at every look.
    """
    return getattr(fn, "__closure__", None) is not None and hasattr(fn, "__dict__")
