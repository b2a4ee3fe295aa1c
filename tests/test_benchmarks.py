"""The benchmarks run, and count what they say they count."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalearn as ml
from benchmarks import (
    _comparisons,
    _count,
    _harness,
    _routing,
    _runs,
    _systems,
    against,
    ceiling,
    choose,
    growth,
    mixed,
    table,
    throughput,
    workloads,
)
from metalearn import apps
from metalearn.apps.records import changed
from metalearn.cli.train_options import parse_train


def test_a_benchmark_stores_its_numbers_with_where_they_were_taken(tmp_path):
    path = tmp_path / "found.json"
    throughput.Throughput(
        only="sine", rounds=1, seconds=0.01, json=str(path)
    ).run_benchmark()
    found = json.loads(path.read_text())
    assert found["tasks_per_s"]["sine"] > 0
    assert found["environment"]["versions"]["jax"] == jax.__version__
    assert found["environment"]["device"]["cores"] >= 1


def test_products_are_counted_with_loops_as_often_as_they_run():
    def three_products(a, b):
        return jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ b), a)

    a, b = jnp.ones((2, 5)), jnp.ones((5, 5))
    assert _count.product_flops(three_products, a, b) == 3 * 2 * 2 * 5 * 5


def test_products_of_the_sine_workload_by_hand():
    """A matrix [in, out] costs 2 N in out; the forward pass of 10 points is `one`."""
    work = workloads.WORKLOADS["sine"]
    one = 2 * 10 * (40 + 40 * 40 + 40)
    flops = ceiling.workload_flops(work) / work.tasks
    # Five second-order steps and a query: between first order and nine passes a step.
    assert 5 * 3 * one < flops < (5 * 9 + 3) * one


def test_convolutions_count_as_direct_ones():
    """5 and 25 images pass forward and backward; kernels [3, 3, D, F] cost 18 D F."""
    work = workloads.WORKLOADS["protonet"]
    layers = [28**2 * 1, 14**2 * 64, 7**2 * 64, 3**2 * 64]
    forward = sum(18 * 64 * inputs for inputs in layers) * 30
    flops = ceiling.workload_flops(work) / work.tasks
    first = 18 * 64 * layers[0] * 30  # no gradient for the images
    np.testing.assert_allclose(flops, 3 * forward - first, rtol=0.01)


def test_stored_results_are_rendered():
    stored = [json.loads(p.read_text()) for p in table.RESULTS.glob("*.json")]
    text = "\n".join(table.render(stored))
    assert "| omniglot-maml | 0 |" in text
    assert "TorchOpt" in text


ORIGIN = {
    "machine": {"cpu": "A", "cores": 2, "devices": 1, "jax": "0.1", "kind": "cpu"},
    "code": "c0de",
    "commit": "abc",
}


def _changed(where, value):
    if where in ORIGIN["machine"]:
        return {**ORIGIN, "machine": {**ORIGIN["machine"], where: value}}
    return {**ORIGIN, where: value}


@pytest.mark.parametrize(
    ("where", "value"),
    [("cpu", "B"), ("cores", 4), ("devices", 2), ("jax", "0.2"), ("code", "other")],
)
def test_runs_of_two_origins_are_not_compared(where, value):
    other = _changed(where, value)
    with pytest.raises(ValueError, match=rf"(?s)first .*second.*{where}: .*{value}"):
        _runs.check_origins({"the first": ORIGIN, "the second": other})


@pytest.mark.parametrize("other", [ORIGIN, _changed("commit", "later, of docs")])
def test_runs_of_one_code_and_machine_are_compared(other):
    _runs.check_origins({"first": ORIGIN, "second": other})


@pytest.mark.parametrize(
    "other", [("tasks", "other", 600), ("tasks", "same", 300), ("20-way", "other", 300)]
)
def test_judgements_on_other_tasks_are_refused_by_name(other):
    mine = ("tasks", "same", 600)
    assert _runs.check_tasks({"a": mine, "b": ("tasks", "same", 600)}) == "same"
    with pytest.raises(ValueError, match=r"system seed 1 and baseline seed 0.*different"):
        _runs.check_tasks({"system seed 1": mine, "baseline seed 0": other})


@pytest.mark.parametrize("value", [True, False])
def test_fields_that_are_true_or_false_can_be_overridden(value):
    options = _runs.Plan("omniglot-matching", 1, (f"app.last_relu={value}",)).options()
    assert parse_train(["omniglot-matching", *options])[2].app.last_relu is value


def test_a_run_of_unknown_code_is_refused_before_anything_is_trained(tmp_path):
    plans = [_runs.Plan("small-boil", 2), _runs.Plan("small-maml", 2, ("steps=5",))]
    folder = plans[1].folder(1, tmp_path)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"small-maml-steps=5-seed1 .*unknown"):
        _runs.planned(plans, tmp_path)
    text = json.dumps(_changed("code", "older"))
    _runs.origin_path(folder).write_text(text)
    with pytest.raises(ValueError, match=r"code: .*older"):
        _runs.planned(plans, tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [folder]


def test_a_new_recipe_is_no_new_code_and_a_new_layer_is(monkeypatch, tmp_path):
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "layers.py").write_text("a")
    monkeypatch.setattr(_runs.ml, "__file__", str(tmp_path / "__init__.py"))
    before = _runs.here()["code"]
    (tmp_path / "recipes.py").write_text("another")
    assert _runs.here()["code"] == before
    (tmp_path / "layers.py").write_text("b")
    assert _runs.here()["code"] != before


def test_differences_are_paired_over_tasks_and_spread_over_seeds():
    rng = np.random.default_rng(0)
    system, baseline = rng.random((2, 3, 50))
    found = against.difference(system, baseline)
    apart = system - baseline
    tasks = apart.mean(0)
    assert found["mean"] == pytest.approx(tasks.mean())
    assert found["ci95"] == pytest.approx(1.96 * tasks.std(ddof=1) / 50**0.5, rel=1e-4)
    assert found["seeds"] == pytest.approx(apart.mean(1))
    assert found["spread"] == pytest.approx(np.std(apart.mean(1), ddof=1))
    assert against.difference(system[:1], baseline[:1])["spread"] is None
    assert _comparisons.spread_of(found["seeds"]) == pytest.approx(found["spread"])


@pytest.mark.parametrize(
    ("measure", "best"),
    [("query/loss", "0.1"), ("query/mse", "0.1"), ("query/accuracy", "0.4")],
)
def test_validation_chooses_by_the_direction_of_its_measure(measure, best):
    rows = {"0.1": {"mean": 0.2}, "0.2": {"mean": 0.3}, "0.4": {"mean": 0.5}}
    assert choose.choice({"0": {"mean": np.nan}, **rows}, measure) == best


def test_nothing_is_chosen_where_nothing_says_what_is_better():
    with pytest.raises(ValueError, match="skill"):
        choose.choice({"0.1": {"mean": 0.2}}, "query/skill")
    with pytest.raises(ValueError, match="finite under none"):
        choose.choice({"0.1": {"mean": np.nan}}, "query/loss")


def _comparison(system, by_seed, origin=ORIGIN, apart=(0.02, 0.04), **more):
    def side(mean):
        return {
            "settings": {"learner": {"name": system}},
            "transductive": False,
            "training_seconds": [60.0, 60.0],
            "metrics": {"query/accuracy": {"mean": mean, "ci95": 0.01}},
            "by_seed": list(by_seed),
            "num_tasks": 600,
        }

    return {
        "benchmark": f"against-small-{system}",
        "kind": "against",
        "system": f"small-{system}",
        "baseline": "small-maml",
        "seeds": [0, 1],
        "overrides": [],
        "baseline_overrides": [],
        "fingerprint": "f00d",
        "origin": origin,
        "difference": {"mean": 0.03, "ci95": 0.01, "seeds": apart, "spread": 0.0141},
        "rows": {"system": side(0.75), "baseline": side(sum(by_seed) / 2)},
        **more,
    }


def test_no_table_shows_two_values_of_one_baseline():
    other = _changed("cpu", "B")
    stored = [
        _comparison("boil", (0.72, 0.73)),
        _comparison("t_net", (0.74, 0.75), other),
        _comparison("imaml", (0.72, 0.73)),
    ]
    text = "\n".join(_comparisons.against_tables(stored))
    one, two = text.split("`small-maml` has ")[1:]
    assert one.startswith("72.50") and "small-boil" in one and "small-imaml" in one
    assert two.startswith("74.50") and "small-t_net" in two and "; B, " in two
    assert "+3.00 ± 1.00 points, σ 1.41 over seeds | +2.0, +4.0 |" in one


def test_two_values_of_one_baseline_of_one_code_are_refused():
    stored = [_comparison("boil", (0.72, 0.73)), _comparison("t_net", (0.74, 0.75))]
    with pytest.raises(ValueError, match="small-boil and against-small-t_net"):
        _comparisons.against_tables(stored)


def test_where_a_system_fails_stands_beside_where_it_succeeds():
    stored = [json.loads(p.read_text()) for p in table.RESULTS.glob("*.json")]
    (row,) = [line for line in _systems.rows(stored) if "`ml.cavia`" in line]
    assert "`sinusoid-cavia` MSE" in row and "`small-cavia` " in row


@pytest.mark.slow
def test_a_comparison_from_training_to_its_table(tmp_path):
    """Two steps of one run, which is judged twice and differs from itself by nothing."""
    few = ["steps=2", "validate_every=2", "validation_tasks=2", "test_tasks=4"]
    few += ["checkpoint_every=2", "learner.num_steps=1", "tasks_per_step=2"]
    path, name = tmp_path / "itself.json", "sinusoid-maml"
    against.Against(
        name, name, 1, tuple(few), runs=str(tmp_path), json=str(path)
    ).run_benchmark()
    found = json.loads(path.read_text())
    assert found["difference"]["mean"] == 0 and found["benchmark"] == "itself"
    assert found["rows"]["baseline"]["by_seed"] == found["rows"]["system"]["by_seed"]
    assert found["origin"] == json.loads(json.dumps(_runs.here()))
    assert found["origin"]["machine"]["cpu"] and found["fingerprint"]
    assert "`sinusoid-maml steps=2" in "\n".join(_comparisons.against_tables([found]))
    folder = _runs.Plan(name, 1, tuple(few)).folder(0, tmp_path)
    chosen_on = _runs.judged(folder, None, part="validation", tasks=4)
    assert chosen_on.fingerprint != found["fingerprint"] and chosen_on.num_tasks == 4
    with pytest.raises(ValueError, match="leave --on glyphs out"):
        _runs.judged(folder, None, on="glyphs")


@pytest.mark.parametrize("threads", [1, 3])
def test_contenders_that_end_in_memory_leave_the_others(threads, capsys):
    calls = []

    def full():
        if calls.count("late"):
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
        calls.append("late")

    def absent():
        raise ImportError("No module named 'higher'")

    contenders = {
        "first": _harness.Contender(lambda: lambda: calls.append("first")),
        "absent": _harness.Contender(absent),
        "late": _harness.Contender(lambda: full),
        "last": _harness.Contender(lambda: lambda: calls.append("last"), steps=2),
    }
    rows = _harness.interleaved(contenders, rounds=2, seconds=0, threads=threads)
    assert list(rows) == ["first", "last"]
    assert all(len(row["step_s"]) == 2 for row in rows.values())
    said = capsys.readouterr().out
    assert "absent: left out, No module" in said and "late: left out, CUDA out of" in said


def test_a_value_that_diverged_is_stored_and_shown():
    rows = {"0.1": {"mean": 0.5, "ci95": 0.1}, "9": {"mean": float("nan"), "ci95": 0.0}}
    assert choose.choice(rows, "query/accuracy") == "0.1"
    stored = json.loads(json.dumps(choose._finite(rows), allow_nan=False))
    row = {"recipe": "r", "overrides": [], "field": "f", "seeds": [0], "num_tasks": 3}
    row |= {"measure": "query/accuracy", "rows": stored, "best": "0.1"}
    assert "**0.1: 50.0 ± 10.0 %**; 9: diverged" in _comparisons.choice_table([row])[-2]


def test_errors_of_contenders_are_raised():
    def wrong():
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        _harness.interleaved(
            {"wrong": _harness.Contender(wrong)}, rounds=1, seconds=0, threads=2
        )


def test_runs_of_a_mixture_are_named_by_what_their_recipe_has_not():
    recipe = apps.find("mixed-hsml").recipe
    wide = changed(changed(recipe, "learner.hidden", 128), "learner.sigma", 1e8)
    made = [
        types.SimpleNamespace(name="mixed-hsml", recipe=r, folder="runs/a")
        for r in (recipe, wide)
    ]
    assert mixed.labels(made) == ["mixed-hsml", "mixed-hsml hidden=128 sigma=100000000.0"]
    with pytest.raises(ValueError, match="runs/a and another run here are both"):
        mixed.labels([made[0], made[0]])


@pytest.mark.slow
@pytest.mark.parametrize(("tree", "ordered"), [(1.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_lanes_of_routing_are_the_learners_of_the_library(tree, ordered):
    """The same loss and the same gradient as `ml.hsml` and `ml.mumomaml`."""
    numbers = _routing.Numbers(tree=tree, ordered=ordered)
    make = ml.hsml if tree else ml.mumomaml
    learner = make(_routing.MODEL, ml.losses.mse, optax.sgd(1e-3), ordered=bool(ordered))
    keys = jax.random.split(jax.random.key(5), 3)
    tasks = ml.sample_batch(_routing.sampler(), (), keys)
    key = jax.random.key(0)
    variables = learner.init(key, _routing.sampler()(key))
    expected = jax.jit(learner.estimate)(variables, tasks, key=key)
    params = _routing.init(0, "gru", numbers)
    grad = jax.jit(jax.grad(_routing.objective, has_aux=True), static_argnums=1)
    found, loss = grad(params, "gru", numbers, tasks)
    np.testing.assert_allclose(loss, expected.metrics["query/loss"].mean(), rtol=1e-5)
    for part in ("example", "embed"):
        pairs = zip(
            jax.tree.leaves(found["structure"][part]),
            jax.tree.leaves(expected.grads["structure"][part]),
            strict=True,
        )
        for ours, theirs in pairs:
            scale = np.abs(theirs).max()
            np.testing.assert_allclose(ours, theirs, atol=1e-4 * scale)


def test_growth_is_told_from_where_a_process_has_settled(tmp_path, monkeypatch, capsys):
    sizes = iter(range(100, 120))
    monkeypatch.setattr(growth, "_one_learner", lambda number: None)
    monkeypatch.setattr(growth, "_resident", lambda: next(sizes) * 2**20)
    growth.Growth(learners=20, json=str(tmp_path / "found.json")).run_benchmark()
    assert "+10.0 MB from learner 10 to 20" in capsys.readouterr().out
    stored = json.loads((tmp_path / "found.json").read_text())
    assert "100.0 MB after the first, 109.0 after 10" in growth.table_rows(stored)[0]
    with pytest.raises(SystemExit, match="learners is 5; expected 20"):
        growth.Growth(learners=5).run_benchmark()
