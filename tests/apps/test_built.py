"""Equal settings and data give the same learner, so that its programs are shared."""

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from metalearn.apps import Curves, FewShotImages, Recipe, built, learners, sgd

CURVES = {"name": "sinusoid"}
RECIPE = Recipe(app=Curves(), learner=learners.MAML(inner_opt=sgd(0.01)))


def test_a_recipe_builds_its_learners_once():
    again = dataclasses.replace(RECIPE, steps=7, test_tasks=9)
    assert again.build(dict(CURVES)) is RECIPE.build(CURVES)
    judged = RECIPE.build_judged(CURVES)
    assert again.build_judged(CURVES) is judged is not RECIPE.build(CURVES)
    assert RECIPE.build_judged(CURVES, steps=0) is not judged
    assert dataclasses.replace(RECIPE, eval_steps=3).build_judged(CURVES) is not judged
    assert RECIPE.trainer(CURVES) is RECIPE.trainer(CURVES) is not again.trainer(CURVES)
    other = dataclasses.replace(RECIPE, learner=learners.MAML(inner_opt=sgd(0.02)))
    assert other.build(CURVES) is not RECIPE.build(CURVES)


def test_other_data_are_another_learner():
    recipe = Recipe(app=FewShotImages(), learner=learners.MAML(inner_opt=sgd(0.01)))
    grey, colour = ({"name": "a", "image_shape": [28, 28, c]} for c in (1, 3))
    assert recipe.build(grey) is recipe.build(dict(grey)) is not recipe.build(colour)


def test_what_differs_in_kind_alone_is_built_apart():
    """To a dictionary the numbers 1, 1.0 and True are one key."""
    make = built.built_once(lambda settings, record: object())
    kinds = [(1,), (1.0,), (True,)]
    assert len({id(make(kind, {})) for kind in kinds}) == 3
    assert make((1,), {"a": 1}) is not make((1,), {"a": True})


def test_what_cannot_be_compared_is_built_each_time():
    made = []
    make = built.built_once(lambda settings, record: made.append(record))
    for settings, record in (([], {}), ((), {"a": object()})):
        make(settings, record), make(settings, record)
    assert len(made) == 4


def test_the_latest_few_are_kept():
    made = []
    make = built.built_once(lambda settings, record: made.append(settings))
    for number in range(built.MOST_BUILT + 1):
        make((number,), {}), make((1,), {})
    make((0,), {}), make((1,), {})
    assert made == [(0,), (1,), *((n,) for n in range(2, built.MOST_BUILT + 1)), (0,)]


def test_threads_that_ask_at_once_get_the_same():
    made, asked = [], threading.Barrier(4)

    @built.built_once
    def make(settings, record):
        made.append(settings)
        time.sleep(0.05)  # the others ask meanwhile
        return object()

    def ask(number):
        asked.wait()
        return make((1,), {})

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, range(4)))) == 1
    assert made == [(1,)]
