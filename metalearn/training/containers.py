"""Trees of arrays as JSON: which containers hold which arrays, and back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core.model import Variables
from metalearn.core.types import PyTree


class Unreadable(Exception):
    """A stored tree is not one that `containers_of` makes."""


def containers_of(tree: PyTree) -> tuple[Any, dict[str, np.ndarray]]:
    """The containers of a tree for JSON, and its arrays by name.

    Containers are `Variables`, dictionaries with keys of text or integers, lists, tuples,
    named tuples, `FrozenDict` and `None`; leaves are arrays, keys and plain numbers.

    Returns:
      A description, with `["array", name]` for an array of jax and `["numpy", name]` for
      one of NumPy, and `{name: array}`; names are paths such as "params/Dense_0/kernel".

    Raises:
      TypeError: another container or leaf; names it and its place.

    Example:
      >>> told, arrays = containers_of({"w": [np.zeros(2)]})
      >>> told, list(arrays)
      (['dict', [['w', ['list', [['numpy', 'w/0']]]]]], ['w/0'])
    """
    arrays: dict[str, np.ndarray] = {}

    def array_of(leaf: Any, path: str) -> str:
        name, number = path or "array", 1
        while name in arrays or name == "__metadata__":  # {"a/b": x, "a": {"b": y}}
            number += 1
            name = f"{path}#{number}"
        arrays[name] = np.asarray(leaf)
        return name

    def told(node: Any, path: str) -> Any:
        inside = lambda name, part: told(part, f"{path}/{name}" if path else str(name))
        kind = _container(node)
        if kind == "none":
            return ["none"]
        if kind == "variables":
            return [kind, inside("params", node.params), inside("state", node.state)]
        if kind in ("dict", "frozen"):
            for key in node:
                if type(key) not in (str, int):
                    raise TypeError(
                        f"{path or 'the tree'} has the key {key!r}, a "
                        f"{type(key).__name__}; a file can hold keys of text and integers."
                    )
            return [kind, [[key, inside(key, part)] for key, part in node.items()]]
        if kind in ("list", "tuple"):
            return [kind, [inside(i, part) for i, part in enumerate(node)]]
        if kind == "named":
            cls, names = type(node), list(node._fields)
            if _named_tuple(cls.__module__, cls.__qualname__, names) is not cls:
                raise TypeError(
                    f"{path or 'the tree'} is a named tuple {cls.__qualname__}, which "
                    f"cannot be found in {cls.__module__} again. Define it at the top of "
                    "the module, under its own name."
                )
            parts = [inside(name, part) for name, part in zip(names, node)]
            return [kind, cls.__module__, cls.__qualname__, names, parts]
        return _told_leaf(node, path, array_of)

    return told(tree, ""), arrays


def rebuilt(told: Any, array: Callable[[str], np.ndarray]) -> PyTree:
    """The tree that `containers_of` described.

    Args:
      told: Description of the tree.
      array: Function from the name of an array to the array.

    Raises:
      Unreadable: the description is none of `containers_of`, or a class of named tuples is
        not imported.
    """
    kind, *parts = told
    build = lambda part: rebuilt(part, array)
    if kind == "none":
        return None
    if kind in ("array", "numpy"):
        found = array(parts[0])
        return found if kind == "numpy" else _on_device(found, parts[0])
    if kind == "key":
        return jax.random.wrap_key_data(
            _on_device(array(parts[0]), parts[0]), impl=parts[1]
        )
    if kind == "variables":
        return Variables(params=build(parts[0]), state=build(parts[1]))
    if kind in ("dict", "frozen"):
        found = {key: build(part) for key, part in parts[0]}
        return found if kind == "dict" else _frozen_dict()(found)
    if kind in ("list", "tuple"):
        found = [build(part) for part in parts[0]]
        return found if kind == "list" else tuple(found)
    if kind == "named":
        module, name, fields, values = parts
        cls = _named_tuple(module, name, fields)
        if cls is None:
            raise Unreadable(
                f"it holds named tuples {module}.{name} with the fields "
                f"{', '.join(fields)}, which are not there. Import {module} first, in the "
                "version that saved them."
            )
        return cls._make(map(build, values))
    if kind == "number":
        return parts[0]
    if kind == "float":
        return float.fromhex(parts[0])
    raise Unreadable(f"it holds an unknown container {kind!r:.40}")


def _container(node: Any) -> str | None:
    """The kind of a container; `None` for a leaf.

    By the exact type: a subclass may hold more than its parts, and would come back as
    another class.
    """
    if node is None:
        return "none"
    for cls, kind in ((Variables, "variables"), (dict, "dict"), (list, "list")):
        if type(node) is cls:
            return kind
    if type(node) is tuple:
        return "tuple"
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return "named"
    if type(node) is _frozen_dict():
        return "frozen"
    return None


def _told_leaf(leaf: Any, path: str, array_of: Callable[[Any, str], str]) -> Any:
    if isinstance(leaf, jax.core.Tracer):
        raise TypeError(f"{path} is traced by jax; save outside of jit, grad and vmap.")
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = array_of(jax.random.key_data(leaf), path)
        return ["key", data, str(jax.random.key_impl(leaf))]
    if isinstance(leaf, jax.Array):
        return ["array", array_of(leaf, path)]
    if isinstance(leaf, (np.ndarray, np.generic)):
        return ["numpy", array_of(leaf, path)]
    if type(leaf) in (bool, int):
        return ["number", leaf]
    if type(leaf) is float:
        return ["float", leaf.hex()]  # JSON has no infinity
    cls = type(leaf)
    raise TypeError(
        f"{path or 'the tree'} is a {cls.__module__}.{cls.__qualname__}, which a file of "
        "ml.save cannot hold: it keeps arrays in dictionaries, lists, tuples and named "
        "tuples. Make these of it, or keep it by ml.Checkpoints, which restore into a "
        "template."
    )


def _named_tuple(module: Any, name: Any, fields: list[str]) -> Any:
    """A class of named tuples that is imported already, or `None`.

    A file must not import code, nor run any: `vars` asks no module to look for a name.
    """
    found = sys.modules.get(module)
    for part in str(name).split("."):
        found = getattr(found, "__dict__", {}).get(part)
    usable = isinstance(found, type) and issubclass(found, tuple)
    return found if usable and list(getattr(found, "_fields", ())) == list(fields) else None


def _on_device(array: np.ndarray, name: str) -> jax.Array:
    kept = jax.dtypes.canonicalize_dtype(array.dtype)
    if kept != array.dtype:
        raise Unreadable(
            f"{name} has dtype {array.dtype.name}, which jax would cut to {kept.name}. "
            "Call jax.config.update('jax_enable_x64', True) before."
        )
    return jnp.asarray(array)


def _frozen_dict() -> type:
    # Imported here: a model of plain functions needs no flax.
    from flax.core import FrozenDict

    return FrozenDict
