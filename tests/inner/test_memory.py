"""Memory that ends: fewer tasks at once, or a message that says what to do."""

import jax
import numpy as np
import optax
import pytest
from tiny import blobs, plain

import metalearn as ml
from metalearn.core import cost
from metalearn.training import loop


class Crowded:
    """Stands in for a device on which at most `room` tasks at once fit."""

    def __init__(self, room, monkeypatch):
        self.tried = []
        advance_of = loop.advance_of

        def make(*args):
            advance, choice = advance_of(*args)

            def call(state, totals, stop):
                found = advance(state, totals, stop)
                self.tried.append(choice.chosen)
                if choice.chosen > room:
                    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
                return found

            return call, choice

        monkeypatch.setattr("metalearn.training.fit.advance_of", make)


LEARNER = ml.maml(plain(), ml.losses.cross_entropy, optax.sgd(0.1))


def run(learner=LEARNER):
    return ml.fit(
        ml.meta_trainer(learner, optax.sgd(1e-2)),
        blobs,
        num_steps=2,
        tasks_per_step=8,
        key=jax.random.key(0),
        progress=False,
    )


def test_auto_retries_with_fewer_tasks_at_once(monkeypatch):
    expected = run()
    assert expected.tasks_at_once == 8
    crowded = Crowded(2, monkeypatch)
    for _ in range(2):  # the second time everything is compiled already
        crowded.tried.clear()
        found = run()
        assert crowded.tried[:3] == [8, 4, 2]
        assert found.tasks_at_once == 2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found.state.variables,
        expected.state.variables,
    )


@pytest.mark.parametrize("chunk", ["auto", 4])
def test_no_room_at_all_says_what_to_do(monkeypatch, chunk):
    crowded = Crowded(0, monkeypatch)
    learner = ml.maml(plain(), ml.losses.cross_entropy, optax.sgd(0.1), task_chunk=chunk)
    with pytest.raises(MemoryError, match=r"task_chunk.*'mixed', 'remat'.*inner steps"):
        run(learner)
    assert crowded.tried == ([4, 4] if chunk == 4 else [8, 4, 2, 1])


def test_other_errors_pass(monkeypatch):
    def make(*args):
        def call(*args):
            raise jax.errors.JaxRuntimeError("INTERNAL: broken")

        return call, cost.Choice()

    monkeypatch.setattr("metalearn.training.fit.advance_of", make)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        run()
