"""The benchmark of streams: what it refuses, how it judges, and its table."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metalearn as ml
from benchmarks import _runs, streams
from metalearn.algorithms.memory.stream import Reading

SHOTS, WAYS = 3, 2


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("small-protonet", (), "recipe of protonet, which does not read a stream"),
        ("omniglot-rnn", ("learner=snail",), "recipe of snail, which does not read"),
        ("omniglot-mann", ("learner.norm=batch",), "images of later items"),
    ],
)
def test_what_reads_no_stream_or_looks_ahead_is_refused_before_training(
    tmp_path, monkeypatch, recipe, overrides, message
):
    monkeypatch.setattr(_runs, "trained", lambda *args: pytest.fail("it trains"))
    asked = streams.Streams((recipe,), set=overrides, runs=str(tmp_path))
    with pytest.raises(SystemExit, match=message):
        asked.run_benchmark()


def test_recipes_of_streams_are_taken():
    streams.check_reads(_runs.Plan("omniglot-mann", 1, ("learner.rows=9", "steps=3")))


def test_shares_are_by_presentation(monkeypatch):
    """Of a learner that knows a class from its second presentation on."""

    def sample(data, key):
        y = jax.random.permutation(key, jnp.arange(SHOTS * WAYS) % WAYS)
        part = ml.Examples.of(jnp.zeros((SHOTS * WAYS, 1)), y)
        return ml.Task(support=part, query=part)

    def adapt(variables, support, *, key):
        assert variables == "best"
        y, same = support.y, support.y[:, None] == support.y[None]
        seen = jnp.sum(jnp.tril(same, -1), axis=1, dtype=jnp.int32)
        right = jax.nn.one_hot(y, WAYS) * jnp.where(seen > 0, 1, -1)[:, None]
        rest = {"carry": (), "label": (), "mask": support.mask}
        return types.SimpleNamespace(
            fitted=Reading(logits=right, labels=y, seen=seen, **rest)
        )

    app = types.SimpleNamespace(
        test_shots=SHOTS,
        load=lambda data_dir, parts: None,
        tasks=lambda data, part: ml.TaskSampler(sample),
    )
    learner = types.SimpleNamespace(adapt=adapt)
    recipe = types.SimpleNamespace(app=app, build_judged=lambda record: learner)
    run = types.SimpleNamespace(recipe=recipe, record={})
    monkeypatch.setattr(streams.run_folder, "load", lambda folder: run)
    monkeypatch.setattr(streams.runs, "best", lambda run: ("best", 0))
    found = streams.by_presentation("folder", None, 2 * streams.CHUNK)
    np.testing.assert_array_equal(found, np.tile([0.0, 1, 1], (2 * streams.CHUNK, 1)))


def test_a_row_of_the_table_by_hand():
    at = [{"mean": 0.25, "ci95": 0.01}, {"mean": 0.9, "ci95": 0.02}]
    one = {"presentations": at, "ways": 5, "by_seed": [[0.2, 0.9], [0.3, 0.9]]}
    rows = {"a": {**one, "spread": [0.07, 0.0]}, "b": {**one, "spread": [None, None]}}
    text, _, head, _, first, second = streams.table_rows({"tasks": 2000, "rows": rows})
    assert (
        "2,000 streams of 5 unseen classes with 2 drawings" in text and "2 training" in text
    )
    assert head == "| | 1 | 2 |"
    assert first == "| a | 25.0 ± 1.0, σ 7.0 | 90.0 ± 2.0, σ 0.0 |"
    assert second == "| b | 25.0 ± 1.0 | 90.0 ± 2.0 |"
