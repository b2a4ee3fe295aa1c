"""The workloads that every comparison uses, as users of metalearn would write them.

| name | model | task | inner loop | tasks a step |
|---|---|---|---|---|
| `omniglot` | Conv4-64, batch norm, pooling | 5-way 1-shot, 1 query a class | 1 SGD | 32 |
| `omniglot5` | the same | 5-way 1-shot, 15 queries a class | 5 SGD | 8 |
| `sine` | MLP 1-40-40-1 | 10 support, 10 query points | 5 SGD | 25 |
| `protonet` | Conv4-64 without head | 5-way 1-shot, 5 queries a class | none | 32 |
| `matching`, `r2d2`, `snail` | the same | the same, in training mode | none | 32 |
| `mini` | Conv4-64 at 84x84x3 | 5-way 1-shot, 15 queries a class | 5 SGD | 4 |
| `resnet12` | ResNet-12 at 84x84x3 | the same | 5 SGD | 4 |

All are float32 with Adam outside; those with an inner loop are second-order MAML. The
network is a plain `flax.linen` module without anything of this library in it. The last two
are for accelerators: a step of them takes two cores minutes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import metalearn as ml
from benchmarks._harness import Contender
from metalearn.core import mesh, programs


@dataclasses.dataclass(frozen=True)
class Workload:
    """Sizes of a workload."""

    kind: str  # "images", "sine" or "embeddings" (images without an inner loop)
    ways: int
    support: int  # examples of the support set
    query: int
    inner_steps: int
    inner_rate: float
    tasks: int
    side: int = 28  # of an image, in pixels
    channels: int = 1  # of an image
    network: str = "conv4"  # of images: "conv4" or "resnet12"
    head: str = "protonet"  # of embeddings: a key of `HEADS`


WORKLOADS = {
    "omniglot": Workload("images", 5, 5, 5, 1, 0.4, 32),
    "omniglot5": Workload("images", 5, 5, 75, 5, 0.1, 8),
    "sine": Workload("sine", 1, 10, 10, 5, 0.01, 25),
    **{
        head: Workload("embeddings", 5, 5, 25, 0, 0.0, 32, head=head)
        for head in ("protonet", "matching", "r2d2", "snail")
    },
}
HEADS = {
    "protonet": ml.protonet,
    "matching": ml.matching_networks,
    "r2d2": ml.r2d2,
    "snail": ml.snail,
}
FOR_CPUS = ("omniglot", "omniglot5", "sine", "protonet")
_MINI = Workload("images", 5, 5, 75, 5, 0.01, 4, side=84, channels=3)
WORKLOADS |= {"mini": _MINI, "resnet12": dataclasses.replace(_MINI, network="resnet12")}


RESNET12_WIDTHS = (64, 160, 320, 640)


class UserConv4(nn.Module):
    """What a user of flax writes for the network of the literature."""

    num_ways: int | None
    width: int = 64
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = True):
        for _ in range(4):
            x = nn.Conv(self.width, (3, 3), dtype=self.dtype)(x)
            x = nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(x)
            x = nn.relu(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        return x if self.num_ways is None else nn.Dense(self.num_ways)(x)


class UserResNet12(nn.Module):
    """The residual network of twelve layers, averaged over space before its head."""

    num_ways: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = True):
        def conv_norm(x, width, side):
            x = nn.Conv(width, (side, side), use_bias=False, dtype=self.dtype)(x)
            return nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(x)

        for width in RESNET12_WIDTHS:
            skip = conv_norm(x, width, 1)
            x = nn.leaky_relu(conv_norm(x, width, 3), 0.1)
            x = nn.leaky_relu(conv_norm(x, width, 3), 0.1)
            x = nn.leaky_relu(conv_norm(x, width, 3) + skip, 0.1)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return nn.Dense(self.num_ways)(x.mean((1, 2)))


class UserMLP(nn.Module):
    """The sinusoid regressor."""

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Dense(40)(x))
        return nn.Dense(1)(x)


def arrays(work: Workload, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs and targets of one batch, channels last, shared by all contenders."""
    rng = np.random.default_rng(seed)
    batch = {}
    for part, num in (("support", work.support), ("query", work.query)):
        if work.kind == "sine":
            x = rng.uniform(-5, 5, (work.tasks, num, 1)).astype(np.float32)
            batch[f"{part}_x"], batch[f"{part}_y"] = x, np.sin(x)
        else:
            shape = (work.tasks, num, work.side, work.side, work.channels)
            batch[f"{part}_x"] = rng.uniform(0, 1, shape).astype(np.float32)
            labels = np.arange(num, dtype=np.int32) % work.ways
            batch[f"{part}_y"] = np.broadcast_to(labels, (work.tasks, num)).copy()
    return batch


def as_tasks(batch: dict[str, np.ndarray]) -> ml.Task:
    """The batch as a `Task` with leading axis `[T]`."""

    def part(name: str) -> ml.Examples:
        y = jnp.asarray(batch[f"{name}_y"])
        mask = jnp.ones(y.shape[:2], bool)
        return ml.Examples(x=jnp.asarray(batch[f"{name}_x"]), y=y, mask=mask)

    return ml.Task(support=part("support"), query=part("query"))


def learner_of(
    work: Workload,
    *,
    task_chunk: int | str = "auto",
    lower: bool | str = True,
    width: int = 64,
    dtype: Any = None,
    **options: Any,
) -> ml.MetaLearner:
    """The learner of a workload; `lower` as of `ml.from_linen`, `options` of `ml.maml`."""
    if work.kind == "embeddings":
        encoder = ml.from_linen(UserConv4(None, width, dtype), lower=lower)
        return HEADS[work.head](encoder, num_ways=work.ways, task_chunk=task_chunk)
    images = work.kind == "images"
    module: Any = UserConv4(work.ways, width, dtype) if images else UserMLP()
    if work.network == "resnet12":
        if width != 64:
            raise ValueError(f"width is {width}; the widths of resnet12 are fixed.")
        module = UserResNet12(work.ways, dtype)
    return ml.maml(
        ml.from_linen(module, lower=lower),
        ml.losses.cross_entropy if images else ml.losses.mse,
        optax.sgd(work.inner_rate),
        num_steps=work.inner_steps,
        norm="batch",
        task_chunk=task_chunk,
        **options,
    )


def metalearn_step(
    work: Workload,
    *,
    devices: int | None = None,
    steps_per_call: int = 1,
    **options: Any,
) -> Contender:
    """One outer step of this library, or several in one call, as `fit` runs them.

    Args:
      work: The workload.
      devices: Devices that share the tasks; if `None` the cores of a CPU for images, one
        for sine waves, as `metalearn train` does.
      steps_per_call: Outer steps of one call.
      **options: Of `learner_of`.
    """

    def setup():
        spread = 1 if work.kind == "sine" else mesh.fitting(work.tasks)
        tasks_mesh = ml.task_mesh(spread if devices is None else devices)
        tasks = jax.tree.map(np.asarray, as_tasks(arrays(work)))
        with jax.set_mesh(tasks_mesh):
            step = compiled(tasks)

        def in_mesh() -> None:
            with jax.set_mesh(tasks_mesh):
                step()

        return in_mesh

    def compiled(tasks: ml.Task):
        trainer = ml.meta_trainer(learner_of(work, **options), optax.adam(1e-3))
        one = jax.tree.map(lambda x: x[0], tasks)
        here = mesh.local_share(work.tasks) or slice(None)
        tasks = mesh.place_tasks(jax.tree.map(lambda x: x[here], tasks))
        holder = [mesh.everywhere(trainer.init(jax.random.key(0), one))]
        keys = jax.random.split(jax.random.key(0), steps_per_call)

        def steps(state: Any, tasks: ml.Task) -> Any:
            if steps_per_call == 1:
                return trainer.step(state, tasks, key=keys[0])
            return jax.lax.scan(lambda s, k: trainer.step(s, tasks, key=k), state, keys)

        run = programs.compiled(steps, donate_argnums=0)

        def step() -> None:
            holder[0], metrics = run(holder[0], tasks)
            jax.block_until_ready((holder[0], metrics))

        step()
        return step

    return Contender(setup, steps_per_call)
