"""Students: pools that they are given, whole runs, settings that are refused."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from few_quiz import write_own_examples

from metalearn.apps import Distillation, NoisyLabels, Recipe, learners, sgd
from metalearn.apps.distillation import RECIPES
from metalearn.cli import main as cli

TINY = Distillation(
    dataset="own", batch=8, quiz_batch=4, eval_batch=5, student=(3,), teacher=(6,)
)
STUDENT = learners.MetaDistil(pretrain_steps=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_own_examples(tmp_path_factory.mktemp("quiz")))


@pytest.fixture(scope="module")
def data(folder):
    return TINY.load(folder)


def _drawn(app, data, num=40):
    sampler = app.tasks(data, "train")
    keys = jax.random.split(jax.random.key(0), num)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(sampler))(keys))


def _seen(examples):
    return {row.tobytes() for row in examples.x.reshape(-1, 4)}


@pytest.mark.parametrize(
    ("pool", "learned", "asked"),
    [("apart", ["train"], ["quiz"]), ("mixed", ["train", "quiz"], ["train", "quiz"])],
)
def test_pools(data, pool, learned, asked):
    tasks = _drawn(dataclasses.replace(TINY, pool=pool), data)
    for part, names in ((tasks.support, learned), (tasks.query, asked)):
        known = np.concatenate([data.parts[name].images for name in names])
        assert _seen(part) == {row.tobytes() for row in known}


def test_each_test_example_is_judged_once(data):
    sampler = TINY.tasks(data, "test")
    assert sampler.sample.num_tasks == 2
    each = [sampler.sample.one(sampler.data, i, jax.random.key(i)) for i in range(2)]
    shown = np.concatenate([np.asarray(t.query.x)[np.asarray(t.query.mask)] for t in each])
    assert len(np.unique(shown, axis=0)) == len(shown) == 9


def test_all_students_of_a_set_have_equal_care():
    """One network, batches of one size, as many updates, one teacher."""
    for begin in ("distil-text-", "distil-"):
        mine = [
            n for n in RECIPES if n.startswith(begin) and n.count("-") == begin.count("-")
        ]
        assert len(mine) == 4
        recipes = [RECIPES[name].recipe for name in mine]
        for field in ("steps", "tasks_per_step", "validate_every"):
            assert len({getattr(recipe, field) for recipe in recipes}) == 1
        apps = {dataclasses.replace(recipe.app, pool="apart") for recipe in recipes}
        assert len(apps) == 1
        assert len({recipe.learner.pretrain_steps for recipe in recipes}) == 1


@pytest.mark.parametrize(
    ("settings", "learner", "said"),
    [
        ({"teacher": (128,)}, learners.ProtoNet(), "does not fit a student"),
        ({}, learners.L2RW(), "l2rw trains on tasks whose query set has clean labels"),
        ({"quiz_share": 0.9}, STUDENT, "app.quiz_share is 0.9.*a sum below 1"),
        ({"student": (0,)}, STUDENT, r"app.student is \(0,\)"),
        ({"teacher": (6, 0)}, STUDENT, r"app.teacher is \(6, 0\)"),
        ({"dim": 7}, STUDENT, "app.dim=7 has no effect"),
        ({"dataset": "hwu64", "dim": 1}, STUDENT, "app.dim is 1; expected a length"),
        ({"width": 3}, STUDENT, "app.width=3 has no effect"),
        ({"network": "lenet"}, STUDENT, "app.teacher=.*has no effect.*app.network mlp"),
        ({"dataset": "hwu64", "network": "lenet", "teacher": (128,)}, STUDENT, "has texts"),
        ({}, learners.NoAdaptation(), "app.teacher=.*read by learners with a teacher"),
        ({}, learners.MetaDistil(norm="batch"), "learner.norm='batch' has no effect"),
    ],
)
def test_settings_are_checked(settings, learner, said):
    app = dataclasses.replace(TINY, **settings)
    with pytest.raises(ValueError, match=said):
        Recipe(app=app, learner=learner).check()


def test_lenet_reads_images_alone(folder):
    app = dataclasses.replace(TINY, network="lenet", teacher=(128,))
    Recipe(app=app, learner=STUDENT).check()
    with pytest.raises(ValueError, match=r"the inputs of own are \[18, 4\]; expected mlp"):
        app.load(folder)


def test_other_learners_fit_and_other_applications_refuse_a_quiz():
    app = dataclasses.replace(TINY, teacher=(128,))
    Recipe(app=app, learner=learners.MAML(inner_opt=sgd(0.1), num_steps=1)).check()
    with pytest.raises(ValueError, match="is a quiz for the student of a teacher"):
        Recipe(app=NoisyLabels(), learner=learners.MetaDistil()).check()


def test_a_run_from_the_command_line_is_judged_and_drawn(folder, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--app.dataset", "own", "--app.batch", "8", "--app.quiz-batch", "4"]
    options += ["--app.eval-batch", "5", "--app.student", "3", "--app.teacher", "6"]
    options += ["--steps", "3", "--validate-every", "3", "--log-every", "1"]
    options += ["--checkpoint-every", "3", "--learner.pretrain-steps", "0"]
    command = ["train", "distil-plain", "--data-dir", folder, "--out", str(out)]
    assert cli.main([*command, *options, "--devices", "1"]) == 0
    assert "macro_accuracy" in capsys.readouterr().out
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert found["num_tasks"] == 2 and not found["transductive"]
    assert (out / "episode.png").stat().st_size > 10_000
