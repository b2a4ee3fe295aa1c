"""Image tasks whose support set fits two rules: labels by class and labels by style."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import checks
from metalearn.core.keys import of_seed
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.core.types import Array, Key, PyTree
from metalearn.tasks.styles import STYLES, check_range, image_tasks


def ambiguous(
    sampler: TaskSampler | Callable[[Key], Task],
    styles: Sequence[str] = ("original", "inverted"),
    *,
    blur: float = 1.0,
) -> TaskSampler:
    """Tasks that no support set can decide: the label is either the class or the style.

    These tasks follow the ambiguous tasks of C. Finn, K. Xu, S. Levine,
    Probabilistic Model-Agnostic Meta-Learning, NeurIPS 2018, section 5, in which several
    attributes of faces explain the support set. Here each class of a support set is shown
    in a style of its own. The styles are assigned to the classes at random for each task.
    Each query image is shown in one of these styles, drawn at random. One rule, drawn for
    each task, labels all queries. The rule is either the class, or the style, which then
    has the label of the class with that style in the support set.

    A query is in conflict if the two rules give different labels. A learner with perfect
    knowledge gives both labels of such a query the same probability. A learner that also
    represents the doubt knows that all queries of a task follow one rule, so its samples
    agree among themselves. The likelihood of a whole query set shows this agreement; the
    likelihood of single queries does not.

    Args:
      sampler: Sampler of tasks of W ways with images `[N, H, W, C]` of floats in 0..1.
      styles: W different styles of "original", "blurred", "edges", "inverted"; see
        `styled`.
      blur: Standard deviation of "blurred" in pixels.

    Returns:
      A sampler. `info["rule"]`, int32, is 0 if the class decides and 1 if the style
      decides. `info["conflict"]`, bool `[Q]`, marks the queries for which the two disagree.

    Raises:
      ValueError: styles are unknown, given twice or not as many as ways, the blur is not a
        number above 0, the inputs are not images, or `info` has these names already.
      TypeError: `sampler` is neither a `TaskSampler` nor a function `key -> Task`.

    Example:
      >>> images, labels = jnp.ones((20, 8, 8, 1)), jnp.arange(20) // 4
      >>> pairs = ml.data.few_shot(images, labels, num_ways=2, num_query=2)
      >>> task = ml.tasks.ambiguous(pairs, ("original", "inverted"))(jax.random.key(0))
      >>> task.info["conflict"].shape
      (4,)
    """
    checks.number("blur", blur, positive=True)
    sampler, task = image_tasks(sampler)
    listed = isinstance(styles, Sequence) and not isinstance(styles, str)
    given = tuple(styles) if listed else ()
    known = all(style in list(STYLES) for style in given)
    if len(given) < 2 or not known or len(set(given)) < len(given):
        raise ValueError(
            f"styles is {styles!r}; expected two or more different ones of "
            f"{', '.join(STYLES)}."
        )
    taken = [name for name in ("rule", "conflict") if name in task.info]
    if taken:
        raise ValueError(f"tasks have {taken} in info already; make them ambiguous once.")
    shown = sampler(of_seed(0))
    if not all(
        getattr(y, "ndim", 0) == 1 and jnp.issubdtype(y.dtype, jnp.integer)
        for y in (shown.support.y, shown.query.y)
    ):
        raise ValueError("labels are no integers [N]; expected those of few-shot tasks.")
    check_range(shown)
    # Masked rows may hold any label, so valid rows alone are counted.
    labels, asked = (
        np.asarray(e.y)[np.asarray(e.mask)] for e in (shown.support, shown.query)
    )
    ways = len(np.unique(labels))
    both = np.concatenate([labels, asked])
    if ways != len(given) or both.min() < 0 or both.max() >= ways:
        raise ValueError(
            f"tasks have {ways} ways and there are {len(given)} styles; expected one style "
            "for each class of a support set."
        )
    sample = _Ambiguous(sampler.sample, given, float(blur))
    return TaskSampler(sample, sampler.data, f"{sampler.name} or {', '.join(given)}")


@dataclasses.dataclass(frozen=True)
class _Ambiguous:
    """Function `(data, key) -> Task`. Equal settings are equal, to share compilations."""

    sample: Callable[[PyTree, Key], Task]
    styles: tuple[str, ...]
    blur: float

    def __call__(self, data: PyTree, key: Key) -> Task:
        k_task, k_order, k_look, k_rule = jax.random.split(key, 4)
        task = self.sample(data, k_task)
        query, ways = task.query, len(self.styles)
        style_of = jax.random.permutation(k_order, ways)  # style of each label
        # The class whose style a query shows. By the rule of styles this is also the label.
        # Labels are integers, so `where` below has no derivative to care for.
        look = jax.random.randint(k_look, query.y.shape, 0, ways, query.y.dtype)
        rule = jax.random.bernoulli(k_rule).astype(jnp.int32)
        return Task(
            support=self._shown(task.support, style_of[task.support.y]),
            # Both labels are integers: neither branch has a derivative.
            query=dataclasses.replace(
                self._shown(query, style_of[look]), y=jnp.where(rule == 1, look, query.y)
            ),
            info={**task.info, "rule": rule, "conflict": (look != query.y) & query.mask},
        )

    def _shown(self, examples: Examples, style: Array) -> Examples:
        """The examples, with each image in the style of its index in `style` `[N]`."""
        looks = [functools.partial(STYLES[name], blur=self.blur) for name in self.styles]

        def one(style: Array, image: Any) -> Array:
            return jax.lax.switch(style, looks, image[None])[0]

        return dataclasses.replace(examples, x=jax.vmap(one)(style, examples.x))
