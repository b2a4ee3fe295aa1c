"""Meta-Embedding: a generator of the vector of a new item, good at once and after one step.

F. Pan, S. Li, X. Ao, P. Tang, Q. He. Warm Up Cold-start Advertisements: Improving CTR
Predictions via Learning to Learn ID Embeddings. SIGIR 2019.

Where it differs from the paper or its released code:

- An item has one vector, and its inner step is along the gradient of the mean loss over all
  its examples. The released code moves a copy of the vector for each example, by the
  gradient of a mean over all items of the batch, which is close to no step.
- Base model and generator are trained one after the other in one run: `pretrain_steps`
  outer steps of the base model, the rest of the generator. The two batches of an item are
  drawn anew each time; the released code has three passes over four fixed ones.
- Tasks are items, drawn with equal probability, in both phases; the paper trains the base
  model on all rows once.
- In the paper the generator learns on the items that the base model was trained on, whose
  clicks that model has fitted. `apart` can keep a share of the items for the generator.
- The wide part of a network has no weight of an item's own, so nothing but the vector
  tells items with equal content apart.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from metalearn.core import checks, kinds, trees
from metalearn.core.estimators import gradient_estimator, remembering
from metalearn.core.keys import split_key
from metalearn.core.learner import MetaLearner, config_of, hashable
from metalearn.core.linen import from_linen
from metalearn.core.model import Model, Variables
from metalearn.core.pairing import paired
from metalearn.core.task import Examples, Task, concatenate
from metalearn.core.types import Array, InnerOpt, Key, LossFn, PyTree, TaskChunk
from metalearn.inner import Adapted, Descent, descent

First = Literal["generated", "mean", "random"]


def meta_embedding(
    model: Model,
    loss_fn: LossFn,
    inner_opt: InnerOpt,
    *,
    pretrain_steps: int,
    generator: Model | None = None,
    num_steps: int = 1,
    balance: float = 0.1,
    first: First = "generated",
    fresh: str = "new_item",
    table: str = "item",
    item: str = "item",
    apart: float = 0.0,
    task_chunk: TaskChunk = "auto",
) -> MetaLearner:
    """Generates the vector of an item that the model does not know, then adapts it alone.

    A task is an item: `e_0 = mean_i h_w(x_i)` over the support set, and `e_1 = e_0 - a
    grad_e l(e_0; support)`. The first `pretrain_steps` outer steps train the base model on
    items that it knows. From then on the base model is frozen and the generator w is
    trained by `balance l(e_0; support) + (1 - balance) l(e_1; query)`.
    The outer optimiser takes both phases for one run. Of a falling rate the generator has
    what is left: 79 % of a cosine over 1,000 steps after 300. Adam, which meets gradients
    of 0 before, makes its first steps up to three times as long as the rate says.

    Args:
      model: The base model, such as `ml.models.ClickNetwork`. One of its parameters is the
        vector of a new item.
      loss_fn: Loss of one task, `ml.losses.binary_cross_entropy` for clicks.
      inner_opt: An optax transformation for the vector; plain SGD in the paper.
      pretrain_steps: Number of outer steps of the base model, 0 or more.
      generator: The network h from inputs to vectors `[N, D]`, such as
        `ml.models.VectorGenerator`. Where its parameters have the names of parameters of
        the base model, those are taken. If None: one dense layer of inputs `[N, ...]`.
      num_steps: K, inner steps; none is the cold phase.
      balance: Share of the cold loss in the objective of the generator, 0..1.
      first: Vector before the first inner step: "generated"; "mean", of all known items;
        "random", as the base model was initialised. The last two are baselines and train
        nothing after the base model.
      fresh: Path of the vector of a new item among the parameters of the base model, a
        regular expression that the whole of one path matches.
      table: Path of the vectors of the known items `[I, D]`, likewise, which "mean" reads.
      item: Entry of the inputs, if they are a dictionary, that tells known items apart. It
        is -1 wherever the item has to count as new.
      apart: About the share of the known items that the base model does not see and on
        which alone the generator learns, from 0 to below 1; with 0, both learn on all, as
        in the paper. Tasks of the other phase count for nothing, so steps have fewer.
      task_chunk: Tasks handled at once, or "auto".

    Returns:
      A `MetaLearner` with params `{"model": ..., "generator": ...}` and state `{"model":
      ..., "frozen": ..., "step": int32}`. After the first phase `frozen` holds the params
      of the base model, and what the outer optimiser makes of `params["model"]` is unread.

    Raises:
      ValueError: an option is out of range, or given where nothing reads it; in `init`:
        no parameter has the path `fresh`, the generator's vectors have another size, or
        inputs do not tell items apart and `apart` is above 0.

    Example:
      >>> network = ml.models.ClickNetwork(fields=((2, 1), (19, 6)), users=9, items=5)
      >>> maker = ml.models.VectorGenerator(fields=((2, 1), (19, 6)), begin=1)
      >>> learner = ml.meta_embedding(
      ...     ml.from_linen(network), ml.losses.binary_cross_entropy, optax.sgd(0.1),
      ...     generator=ml.from_linen(maker), pretrain_steps=2000,
      ... )
    """
    checks.model(model)
    checks.loss(loss_fn)
    checks.whole_number("pretrain_steps", pretrain_steps, least=0)
    checks.one_of("first", first, ("generated", "mean", "random"))
    _check_shares(balance, apart)
    if first != "generated":
        checks.unread(meta_embedding, {"balance": balance}, "first='generated'")
    inner = descent(
        model._replace(init=functools.partial(_init_model, model, first, fresh, table)),
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        adapt_filter=lambda path, leaf: bool(re.fullmatch(fresh, path)),
        norm="running",
    )
    warm = _WarmUp(
        model=model,
        loss_fn=loss_fn,
        inner=inner,
        generator=_Generator(generator, fresh),
        pretrain_steps=pretrain_steps,
        num_steps=num_steps,
        balance=balance,
        first=first,
        fresh=fresh,
        table=table,
        item=item,
        apart=apart,
    )

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Adapted:
        kinds.adaptation(variables, support, ("model", "generator"))
        base = warm.base_of(variables)
        return warm.adapt(variables, base, _hidden(support, item), key)[0]

    def predict(adapted, x, *, key=None, mask=None) -> PyTree:
        kinds.adapted(adapted, Adapted)
        return inner.predict(adapted, _hide(x, item), key=key, mask=mask)[0]

    estimate = remembering(
        gradient_estimator(warm.objective, task_chunk=task_chunk),
        lambda variables: {"frozen": warm.base_of(variables)},
    )
    told = {"balance": balance, "first": first, "apart": apart}
    config = config_of(
        "meta_embedding", pretrain_steps=pretrain_steps, num_steps=num_steps, **told
    )
    return MetaLearner(warm.init, adapt, predict, estimate, config, hashable(loss_fn))


class _WarmUp(NamedTuple):
    """The two phases of training; see `meta_embedding` for the fields."""

    model: Model
    loss_fn: LossFn
    inner: Descent
    generator: _Generator
    pretrain_steps: int
    num_steps: int
    balance: float
    first: First
    fresh: str
    table: str
    item: str
    apart: float

    def init(self, key: Key, task: Task) -> Variables:
        checks.one_task(task, key)
        if self.apart and not _tells(task.support.x, self.item):
            raise ValueError(
                f"apart is {self.apart}, but inputs have no entry {self.item!r} that tells "
                "items apart; expected one, or apart=0."
            )
        k_model, k_generator = split_key(key)
        made = self.inner.init(k_model, task)
        maker = self.generator.init(k_generator, made.params, task.support.x)
        state = {
            "model": made.state,
            "frozen": made.params,
            "step": jnp.zeros((), jnp.int32),
        }
        return Variables(params={"model": made.params, "generator": maker}, state=state)

    def base_of(self, variables: Variables) -> PyTree:
        """Params of the base model: those of the moment when its training ended."""
        goes_on = variables.state["step"] <= self.pretrain_steps
        return jax.tree.map(
            lambda now, then: jnp.where(goes_on, now, then),
            variables.params["model"],
            variables.state["frozen"],
        )

    def objective(self, variables: Variables, task: Task, *, key: Key):
        """Objective of the phase, the state of the learner, the report."""
        step, before = variables.state["step"], variables.state["model"]
        in_first = step < self.pretrain_steps
        loss, after, report = jax.lax.cond(
            in_first, self.of_base, self.of_generator, variables, task, key
        )
        weight = self.weight(task, step).astype(loss.dtype)
        # What counts for nothing changes nothing: no NaN times 0, no running averages.
        loss = jnp.where(weight > 0, weight * loss, 0)
        after = jax.tree.map(lambda a, b: jnp.where(weight > 0, a, b), after, before)
        return loss, ({"model": after, "step": step + 1}, report)

    def weight(self, task: Task, step: Array) -> Array:
        """Weight of an item in the objective of a phase; its mean over many items is 1."""
        if not self.apart:
            return jnp.ones(())
        support = task.support
        number = jnp.max(jnp.where(support.mask, support.x[self.item], -1))
        apart = _is_apart(number, self.apart)
        of_base = jnp.where(apart, 0, 1 / (1 - self.apart))
        of_generator = jnp.where(apart, 1 / self.apart, 0)
        return jnp.where(step < self.pretrain_steps, of_base, of_generator)

    def adapt(self, variables: Variables, base: PyTree, support: Examples, key):
        """The inner loop from the first vector of the item."""
        own = _leaf(base, self.fresh)
        if self.first == "generated":
            maker = variables.params["generator"]
            vectors = self.generator.apply(maker, base, support.x)
            vector = trees.masked_mean(vectors, support.mask).reshape(own.shape)
        elif self.first == "mean":
            known = _vectors(base, self.table, own)
            # Vectors of items that the base model does not see are as initialised.
            seen = ~_is_apart(jnp.arange(len(known)), self.apart)
            vector = trees.masked_mean(known, seen)
        else:
            vector = own
        params = _with_leaf(base, self.fresh, vector.astype(own.dtype))
        start = Variables(params=params, state=variables.state["model"])
        return self.inner.adapt(start, None, support, key=key)

    def of_base(self, variables: Variables, task: Task, key: Key):
        """Loss of the base model on items that it knows, its state, the report."""
        both = concatenate(task.support, task.query)
        base = Variables(params=variables.params["model"], state=variables.state["model"])
        outputs, state = self.model.apply(base, both.x, key=key, train=True, mask=both.mask)
        loss = paired(self.loss_fn, outputs, both)
        return loss, state, {"cold/loss": loss, "query/loss": loss}

    def of_generator(self, variables: Variables, task: Task, key: Key):
        """Objective of the generator, the state of the base model, the report."""
        support, query = (_hidden(part, self.item) for part in (task.support, task.query))
        # A state has no gradient, so of all params only the generator's get one.
        frozen = variables.state["frozen"]
        adapted, path = self.adapt(variables, frozen, support, key)
        if self.num_steps:
            cold = path.losses[0]
        else:
            outputs = self.inner.predict(adapted, support.x, mask=support.mask)[0]
            cold = paired(self.loss_fn, outputs, support)
        outputs = self.inner.predict(adapted, query.x, mask=query.mask)[0]
        warm = paired(self.loss_fn, outputs, query)
        report = {"cold/loss": cold, "query/loss": warm}
        objective = self.balance * cold + (1 - self.balance) * warm
        return objective, variables.state["model"], report


def _check_shares(balance: float, apart: float) -> None:
    checks.number("balance", balance)
    checks.number("apart", apart)
    if balance > 1:
        raise ValueError(f"balance is {balance}; expected a share from 0 to 1.")
    if apart >= 1:
        raise ValueError(f"apart is {apart}; expected a share from 0 to below 1.")


def _init_model(model: Model, first: str, fresh: str, table: str, key: Key, x: PyTree):
    """Variables of the base model, which has the parameters that are named."""
    made = model.init(key, x)
    own = _leaf(made.params, fresh)
    if first == "mean":
        _vectors(made.params, table, own)
    return made


class _Generator:
    """The generator, whose params lack those that it shares with the base model."""

    def __init__(self, model: Model | None, fresh: str):
        if model is not None:
            checks.model(model, "generator")
        self.model, self.fresh = model, fresh

    def network(self, base: PyTree) -> Model:
        if self.model is not None:
            return self.model
        return from_linen(_Dense(_leaf(base, self.fresh).size))

    def init(self, key: Key, base: PyTree, x: PyTree) -> PyTree:
        network = self.network(base)
        made = network.init(key, x)
        if jax.tree.leaves(made.state):
            raise ValueError(
                "the generator has a state, such as averages of batch norm; expected a "
                "network of parameters alone."
            )
        size = _leaf(base, self.fresh).size
        like = jax.eval_shape(lambda v: network.apply(v, x)[0], made)
        trees.one_array(like, "the output of the generator", f"vectors [N, {size}]")
        if like.shape[1:] != (size,):
            raise ValueError(
                f"the generator gives {list(like.shape)}; expected [N, {size}], the size "
                f"of the parameter {self.fresh!r}."
            )
        shared = {k: v for k, v in made.params.items() if k in base}
        for name, part in shared.items():
            shapes = [jax.tree.map(jnp.shape, tree) for tree in (part, base[name])]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"the parameter {name!r} of the generator has the shapes {shapes[0]}, "
                    f"and that of the base model {shapes[1]}; expected the same ones, or "
                    "another name."
                )
        return {k: v for k, v in made.params.items() if k not in base}

    def apply(self, maker: PyTree, base: PyTree, x: PyTree) -> Array:
        network = self.network(base)
        # Names of both are the base model's; a network takes no parameter beyond its own.
        wanted = jax.eval_shape(lambda: network.init(jax.random.key(0), x)).params
        params = {name: maker[name] if name in maker else base[name] for name in wanted}
        return network.apply(Variables(params=params, state={}), x)[0]


class _Dense(nn.Module):
    """One dense layer of all inputs of a row, tanh, divided by five."""

    size: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layer = nn.Dense(self.size, use_bias=False, name="generate_vector")
        return jnp.tanh(layer(x.reshape(x.shape[0], -1))) / 5


def _is_apart(number: Array, share: float) -> Array:
    """Whether items are kept from the base model; these are spread over the numbers."""
    golden = (5**0.5 - 1) / 2
    # Whole numbers, for products of floats would differ between float32 and float64.
    place = number.astype(jnp.uint32) * jnp.uint32(round(golden * 2**32))
    return place < jnp.uint32(round(share * (2**32 - 1)))


def _tells(x: Any, item: str) -> bool:
    return isinstance(x, Mapping) and item in x


def _hide(x: Any, item: str) -> Any:
    """The inputs of items that count as new."""
    return {**x, item: jnp.full_like(x[item], -1)} if _tells(x, item) else x


def _hidden(examples: Examples, item: str) -> Examples:
    return dataclasses.replace(examples, x=_hide(examples.x, item))


def _leaf(params: PyTree, path: str) -> Array:
    found = trees.split(params, lambda p, leaf: bool(re.fullmatch(path, p)))[0]
    leaves = jax.tree.leaves(found)
    if len(leaves) != 1:
        raise ValueError(
            f"the base model has {len(leaves)} parameters {path!r}; expected one. Paths: "
            + ", ".join(trees.leaf_paths(params))
        )
    return leaves[0]


def _with_leaf(params: PyTree, path: str, value: Array) -> PyTree:
    one, rest = trees.split(params, lambda p, leaf: bool(re.fullmatch(path, p)))
    return trees.merge(jax.tree.map(lambda _: value, one), rest)


def _vectors(params: PyTree, table: str, own: Array) -> Array:
    """Vectors of the known items."""
    found = _leaf(params, table)
    if found.ndim != 1 + own.ndim or found.shape[1:] != own.shape:
        raise ValueError(
            f"the parameter {table!r} has shape {found.shape}; expected vectors [I, "
            f"{', '.join(map(str, own.shape))}] of the known items."
        )
    return found
