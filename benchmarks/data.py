"""Where tasks come from: episodes a second, and the share of a step spent waiting."""

from __future__ import annotations

import dataclasses
import time

import jax
import optax

import metalearn as ml
from benchmarks import _harness, workloads


@dataclasses.dataclass(frozen=True)
class Data:
    """The device sampler and the stream on a set of colour images, 5-way 1-shot.

    Attributes:
      folder: Folder or zip of `class/image` files.
      split: Which split of its splits.json, if that holds several.
      image_size: Side that images are resized to.
      tasks: Tasks of a step.
      seconds: Length of one measurement.
      threads: Of the stream.
      json: Where to write; `benchmarks/results/data.json` by default.
    """

    folder: str
    split: str | None = None
    image_size: int = 32
    tasks: int = 8
    seconds: float = 10.0
    threads: int = 2
    json: str | None = None

    def run_benchmark(self) -> None:
        options = {"image_size": self.image_size, "channels": 3, "split": self.split}
        name = f"folder:{self.folder}"
        train = ml.data.load(name, parts=("train",), **options).train
        sampler = ml.data.few_shot(train, num_ways=5, num_support=1, num_query=5)
        images = ml.data.open_records(name, **options)
        stream = ml.data.stream(images, images.labels, num_query=5, threads=self.threads)
        learner = ml.maml(
            ml.from_linen(workloads.UserConv4(5)),
            ml.losses.cross_entropy,
            optax.sgd(0.1),
            norm="batch",
        )
        trainer = ml.meta_trainer(learner, optax.adam(1e-3))
        first = sampler.first(jax.random.key(0))
        state = jax.jit(trainer.init)(jax.random.key(0), first)
        step = jax.jit(trainer.step)
        draw = jax.jit(
            lambda data, keys: ml.sample_batch(sampler, data, keys),
        )
        keys = jax.random.split(jax.random.key(1), self.tasks)
        fixed = draw(sampler.data, keys)

        drawn = self._rate(lambda: jax.block_until_ready(draw(sampler.data, keys)))
        batches = stream.batches(self.tasks, 0)
        streamed = self._rate(lambda: next(batches))
        alone = self._rate(lambda: jax.block_until_ready(step(state, fixed, key=keys[0])))
        fixed = jax.device_put(next(batches))
        jax.block_until_ready(step(state, fixed, key=keys[0]))  # another info: compiles
        steps = 0
        began = time.perf_counter()
        while time.perf_counter() - began < self.seconds:
            found = step(state, fixed, key=keys[0])
            fixed = jax.device_put(next(batches))  # while the device computes
            jax.block_until_ready(found)
            steps += 1
        both = steps * self.tasks / (time.perf_counter() - began)
        result = {
            "sampler_tasks_per_s": drawn,
            "stream_tasks_per_s": streamed,
            "step_tasks_per_s": alone,
            "sampler_share_of_step": alone / (alone + drawn),
            "training_from_stream_tasks_per_s": both,
            "stream_share_of_step": max(0.0, 1 - both / alone),
        }
        for label, value in result.items():
            print(f"{label:36} {value:10.3f}")
        _harness.store("data", {"kind": "data", **result}, self.json)

    def _rate(self, call) -> float:
        for _ in range(3):
            call()
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < self.seconds / 2:
            call()
            count += 1
        return count * self.tasks / (time.perf_counter() - began)
