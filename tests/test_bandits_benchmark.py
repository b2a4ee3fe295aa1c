"""The benchmark of bandits: that it trains and stores, how it judges, and its table."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metalearn as ml
from benchmarks import bandits

TINY = {"contexts": 2, "episodes": 2, "bits": 3, "arms": 2, "pulls": 2, "hidden": 3}


@pytest.mark.slow  # half a minute of compiling; how it judges and compares is held below
def test_both_agents_are_trained_and_their_regrets_stored(tmp_path):
    path = tmp_path / "found.json"
    asked = {"steps": 1, "tasks_per_step": 2, "seeds": 1, "tasks": 2 * bandits.CHUNK}
    bandits.Bandits(**TINY, **asked, json=str(path)).run_benchmark()
    stored = json.loads(path.read_text())
    assert (stored["benchmark"], stored["kind"]) == ("found", "bandits")
    assert stored["chance"] == pytest.approx(0.4)  # one of two arms, 0.9 against 0.1
    assert stored["settings"]["learner"]["hidden"] == 3 and stored["environment"]
    mine, base = (stored["rows"][name] for name in ("with memory", "without"))
    assert mine["new"]["by_pull"] != base["new"]["by_pull"]
    for kind in bandits.KINDS:
        for row in (mine, base):
            # Barely trained agents pull by chance.
            assert row[kind]["mean"] == pytest.approx(0.4, abs=0.08)
            assert row[kind]["mean"] == pytest.approx(np.mean(row[kind]["by_pull"]))
        apart = mine[kind]["mean"] - base[kind]["mean"]
        assert stored["comparison"][kind]["difference"]["mean"] == pytest.approx(apart)
    text, _, head, _, first, second, ratio = bandits.table_rows(stored)
    assert "after 2 episodes of 2 bandits" in text and "on 100 epochs" in text
    assert head.count("|") == first.count("|") == second.count("|") == ratio.count("|")
    assert f"| with memory | {mine['recurring']['mean']:.3f} ± " in first


def test_a_number_of_epochs_that_are_no_whole_chunks_is_refused():
    with pytest.raises(SystemExit, match="multiple of 50"):
        bandits.Bandits(tasks=60).run_benchmark()


def test_regret_is_of_the_pulls_of_either_kind_of_query(monkeypatch):
    """Of an agent that finds the good arm of known bandits at its second pull."""
    options = {"good": 0.8, "bad": 0.3, "pulls": 2, "hidden": 3, "discount": 0.5}
    learner = ml.episodic_lstm(None, num_ways=2, memory=True, **options)
    sampler = ml.tasks.barcodes(2, 2, bits=3, arms=2, num_new=3)
    variables = learner.init(jax.random.key(0), sampler(jax.random.key(0)))

    def play_each(agent, rules, query, memory, key):
        assert agent is not None and memory is not None and key is not None
        assert rules._asdict().items() >= {
            "arms": 2,
            "capacity": 100,
            **options,
        }.items() - {("hidden", 3)}
        known = jnp.arange(5) < 2
        other = 1 - query.y
        then = jnp.where(known, query.y, other)
        return types.SimpleNamespace(actions=jnp.stack([other, then], axis=1))

    monkeypatch.setattr(bandits, "play_each", play_each)
    found = bandits.judge_of(learner, sampler, bandits.CHUNK)(variables)
    known, new = np.tile([0.5, 0], (50, 2, 1)), np.full((50, 3, 2), 0.5)
    np.testing.assert_allclose(found["recurring"], known, rtol=1e-6)
    np.testing.assert_allclose(found["new"], new, rtol=1e-6)


def test_a_ratio_and_its_interval_by_hand():
    mine = np.array([[0.1, 0.3], [0.1, 0.1]])
    base = np.array([[0.4, 0.4], [0.2, 0.6]])
    found = bandits.compared(mine, base)
    assert found["difference"]["mean"] == pytest.approx(-0.25)
    assert found["ratio"]["mean"] == pytest.approx(0.15 / 0.4)
    assert found["ratio"]["seeds"] == pytest.approx([0.5, 0.25])
    # Means over seeds are 0.1, 0.2 beside 0.3, 0.5: what is left is -0.0125 and 0.0125.
    half = 1.96 * np.std([-0.0125 / 0.4, 0.0125 / 0.4], ddof=1) / np.sqrt(2)
    assert found["ratio"]["ci95"] == pytest.approx(half)
