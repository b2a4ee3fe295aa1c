"""Where tasks come from: episodes a second, and the share of a step spent waiting."""

from __future__ import annotations

import dataclasses
import statistics
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
      rounds: Turns of training on one batch and from the stream.
      threads: Of the stream.
      json: Where to write; `benchmarks/results/data.json` by default.
    """

    folder: str
    split: str | None = None
    image_size: int = 32
    tasks: int = 8
    seconds: float = 6.0
    rounds: int = 5
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

        drawn = self._rate(lambda: jax.block_until_ready(draw(sampler.data, keys)))
        batches = stream.batches(self.tasks, 0)
        streamed = self._rate(lambda: next(batches))
        batch = jax.device_put(next(batches))
        train_on = lambda batch: jax.block_until_ready(step(state, batch, key=keys[0]))
        train_on(batch)
        alone, both, waits = [], [], []
        for _ in range(self.rounds):
            alone.append(self._rate(lambda: train_on(batch)))
            waited = []

            def streamed_step(waited=waited):
                began = time.perf_counter()
                fresh = jax.device_put(next(batches))
                waited.append(time.perf_counter() - began)
                train_on(fresh)

            both.append(self._rate(streamed_step))
            waits.append(statistics.mean(waited) * both[-1] / self.tasks)
        alone_rate, both_rate = statistics.median(alone), statistics.median(both)
        slowdowns = [1 - b / a for a, b in zip(alone, both, strict=True)]
        result = {
            "sampler_tasks_per_s": drawn,
            "stream_tasks_per_s": streamed,
            "step_tasks_per_s": alone_rate,
            "sampler_share_of_step": alone_rate / (alone_rate + drawn),
            "training_from_stream_tasks_per_s": both_rate,
            "stream_share_of_step": statistics.median(waits),
            "slower_by_decoding_beside": statistics.median(slowdowns),
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
