"""The benchmark of texts: what it refuses, what it pairs, and its table."""

import itertools
import types

import numpy as np
import pytest

from benchmarks import _runs, texts


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"dataset": "banking"}, "expected one of banking77"),
        ({"dataset": "hwu64", "folds": ("nyt",)}, "names nyt; hwu64 has 01, 02"),
        ({"dataset": "hwu64", "shots": (0,)}, "numbers of 1 or more"),
        ({"dataset": "hwu64", "shots": ()}, "numbers of 1 or more"),
        ({"dataset": "hwu64", "tasks": 1}, "expected 2 or more"),
        ({"dataset": "hwu64", "seeds": 0}, "expected 1 or more"),
        ({"dataset": "hwu64", "shots": (1, 1)}, "--shots has one twice: 1 1"),
        ({"dataset": "hwu64", "folds": ("01", "01")}, "--folds has one twice"),
        ({"dataset": "hwu64", "recipes": ("text-centroid",)}, "--recipes has one twice"),
        ({"dataset": "hwu64", "recipes": ("small-protonet",)}, "no recipe of texts"),
        ({"dataset": "hwu64", "recipes": ("text-foo",)}, "unknown recipe"),
        ({"dataset": "hwu64", "set": ("app.fold=02",)}, "the benchmark itself sets"),
        ({"dataset": "hwu64", "set": ("app.eval-shots=3",)}, "the benchmark itself sets"),
        ({"dataset": "hwu64", "set": ("steps=-1",)}, "steps is -1"),
        ({"dataset": "hwu64", "set": ("steps",)}, "expected FIELD=VALUE"),
        ({"dataset": "hwu64", "features": "foo"}, "2"),  # told by the parser
        ({"dataset": "hwu64", "json": "/"}, "a folder; expected a file"),
    ],
)
def test_what_is_not_there_is_refused_before_training(monkeypatch, asked, message):
    monkeypatch.setattr(_runs, "trained", lambda *args: pytest.fail("it trains"))
    with pytest.raises((SystemExit, ValueError), match=message):
        texts.Texts(**asked).run_benchmark()


def classes_of(monkeypatch, **numbers):
    """Stands in for the set, with these numbers of classes in its parts."""
    parts = {k: types.SimpleNamespace(num_classes=n) for k, n in numbers.items()}
    monkeypatch.setattr(
        texts.FewShotText,
        "texts",
        lambda app, data_dir: types.SimpleNamespace(
            name=app.dataset, fold=app.fold, parts=parts
        ),
    )


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((14, 9, 9), "text-protonet has tasks of 15 classes, and hwu64 01 has 14 in train"),
        ((15, 4, 9), "tasks of 5 classes, and hwu64 01 has 4 in validation.*app.eval_ways"),
    ],
)
def test_a_fold_with_too_few_classes_is_refused_before_training(
    monkeypatch, numbers, message
):
    monkeypatch.setattr(_runs, "trained", lambda *args: pytest.fail("it trains"))
    train, validation, test = numbers
    classes_of(monkeypatch, train=train, validation=validation, test=test)
    with pytest.raises(SystemExit, match=message):
        texts.Texts("hwu64", ("text-protonet",)).run_benchmark()


@pytest.fixture
def trained(monkeypatch):
    """Runs that are right in 0.5 of the tasks, and 0.25 more with a shot more.

    The first fold of a learner is right in 0.125 more.
    """
    stored = {}

    def judged(folder, data_dir, *, tasks, shots):
        name = folder.name
        at = 0.25 + 0.25 * shots
        at += 0.125 * ("protonet" in name and "fold=01" in name)
        values = {"query/accuracy": np.full(4, at)}
        return types.SimpleNamespace(
            values=values, tasks="t", fingerprint=f"{shots}", num_tasks=4
        )

    app = types.SimpleNamespace(test_ways=5)
    run = types.SimpleNamespace(recipe=types.SimpleNamespace(app=app))
    found = {"settings": {}, "training_seconds": 1.0, "result": {"best_step": 3}}
    classes_of(monkeypatch, train=15, validation=5, test=5)
    monkeypatch.setattr(_runs, "planned", lambda plans, runs: {})
    monkeypatch.setattr(_runs, "trained", lambda plan, seed, runs, _: plan.folder(seed, ""))
    monkeypatch.setattr(_runs, "judged", judged)
    monkeypatch.setattr(texts, "summary", lambda folder: found)
    monkeypatch.setattr(texts.run_folder, "load", lambda folder: run)
    monkeypatch.setattr(texts._harness, "store", lambda name, row, path: stored.update(row))
    return stored


def test_a_learner_is_paired_with_the_centroid_on_every_fold(trained):
    texts.Texts(
        "hwu64", ("text-protonet",), folds=("01", "02"), shots=(1, 2)
    ).run_benchmark()
    centroid, learner = trained["rows"]["text-centroid"], trained["rows"]["text-protonet"]
    assert "difference" not in centroid["shots"]["1"]
    assert centroid["shots"]["2"]["mean"] == 0.75
    assert learner["shots"]["1"]["by_fold"] == [0.625, 0.5]
    apart = learner["shots"]["1"]["difference"]
    assert apart["by_fold"] == [0.125, 0.0] and apart["mean"] == 0.0625
    assert learner["best_steps"] == [3, 3]


def test_runs_that_were_judged_on_other_tasks_are_refused(trained, monkeypatch):
    numbers = itertools.count()
    monkeypatch.setattr(_runs, "told", lambda evaluation: ("t", f"{next(numbers)}", 4))
    with pytest.raises(ValueError, match="judged on different tasks"):
        texts.Texts("hwu64", ("text-protonet",), folds=("01",)).run_benchmark()


def test_a_row_of_the_table_by_hand():
    one = {"mean": 0.5, "ci95": 0.01, "spread": 0.02}
    apart = {"mean": 0.05, "ci95": 0.01, "spread": None}
    rows = {
        "text-centroid": {"ways": 5, "shots": {"1": one}},
        "text-maml": {"ways": 5, "shots": {"1": {**one, "difference": apart}}},
    }
    row = {
        "dataset": "liu54",
        "features": "hashed",
        "folds": ["01", "02"],
        "seeds": 1,
        "tasks": 1000,
        "rows": rows,
    }
    text, _, head, _, first, second = texts.table_rows(row)
    assert (
        "5-way tasks of `liu54`" in text and "2 folds" in text and "a fold: 1,000;" in text
    )
    assert head == "| | 1-shot | difference |"
    assert first == "| text-centroid | 50.0 ± 1.0, σ 2.0 |  |"
    assert second == "| text-maml | 50.0 ± 1.0, σ 2.0 | +5.0 ± 1.0 |"
