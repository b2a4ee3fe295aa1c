"""The benchmark of rollouts: what is timed is the same work, and its table."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import rollouts

# Neither comes with the extra `test`; both are peers.
pytest.importorskip("gymnasium")
pytest.importorskip("torch")


def test_contenders_are_timed_and_stored(tmp_path):
    path = tmp_path / "found.json"
    rollouts.Rollouts(
        tasks=2, episodes=2, widths=(4,), rounds=1, seconds=0.01, json=str(path)
    ).run_benchmark()
    found = json.loads(path.read_text(encoding="utf-8"))
    assert len(found["rows"]) == 3 and len(found["times_faster"]) == 2
    row = found["rows"]["metalearn"]
    assert row["steps_per_s"] == pytest.approx(4 * 100 / row["step_s_median"], abs=1)
    lines = rollouts.table_rows(found)
    assert "of `navigation-100steps`, 2 goals of 2 episodes" in lines[0]
    assert len(lines) == 7 and f"{row['steps_per_s']:,}" in lines[4]


@pytest.mark.parametrize("number", [0, 1])
def test_a_peer_plays_the_same_environment(number):
    """The same moves from the same start have the same rewards."""
    import jax
    import jax.numpy as jnp

    import metalearn as ml
    from benchmarks import gymnasium_peers

    goal = np.array([0.3, -0.2], np.float32)
    moves = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    environment = ml.environments.navigation(horizon=5)
    task = {"goal": jnp.asarray(goal)}
    _, state = environment.reset(jax.random.key(0), task)
    peer = gymnasium_peers.Navigation(goal, 5)
    if number:
        peer = gymnasium_peers.AllAtOnce(goal[None], 5)
    peer.reset()
    for move in moves:
        _, state, reward, there, over, _ = environment.step(
            jax.random.key(0), state, jnp.asarray(move), task
        )
        _, theirs, theirs_there, theirs_over, _ = peer.step(move[None] if number else move)
        np.testing.assert_allclose(np.ravel(theirs)[0], reward, rtol=1e-5)
        assert bool(np.ravel(theirs_there)[0]) == bool(there)
        assert bool(np.ravel(theirs_over)[0]) == bool(over)
