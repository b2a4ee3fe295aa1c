"""Unseen domains: parts and tasks, rotation by hand, refusals, a whole run."""

from __future__ import annotations

import dataclasses
import gzip
import json
import types

import jax
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from image_folders import folder, picture

import metalearn as ml
from benchmarks import domains as benchmark
from metalearn import runs
from metalearn.apps import Recipe, UnseenDomain, learners, sgd
from metalearn.apps.domains import RECIPES
from metalearn.apps.domains.batches import held_out_batches
from metalearn.cli import main as cli
from metalearn.core import cost
from metalearn.data import domains

PLACES, KINDS, EACH = ("field", "lab", "sea"), ("ant", "bee"), 6
TINY = UnseenDomain(
    dataset="own", target="lab", per_domain=2, eval_queries=5, width=4, validation_share=0.5
)


def _content(places=PLACES, kinds=KINDS, each=EACH, size=(8, 8)):
    return {
        f"{place}/{kind}/{i}.png": picture([p, k, i], size=size)
        for p, place in enumerate(places)
        for k, kind in enumerate(kinds)
        for i in range(each)
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("domains") / "own", _content())


@pytest.fixture(scope="module")
def data(root):
    return TINY.load(str(root))


def _bytes(images):
    return np.rint(images * 255).astype(np.uint8)


def test_the_target_is_in_no_part_but_the_test(data):
    found = data.set
    assert found.domain_names == PLACES and found.class_names == KINDS
    for part in ("train", "validation"):
        assert set(found.domains[data.rows[part]].tolist()) == {0, 2}
        # As many of each class and domain.
        pairs = list(zip(found.domains[data.rows[part]], found.labels[data.rows[part]]))
        assert sorted(map(pairs.count, set(pairs))) == [EACH // 2] * 4
    assert set(found.domains[data.rows["test"]].tolist()) == {1}
    assert sum(map(len, data.rows.values())) == len(found.labels)
    assert len(set(np.concatenate(list(data.rows.values())).tolist())) == len(found.labels)


def test_a_training_task_holds_one_source_out_and_says_which_rows_are_of_which(data):
    found, train = data.set, data.rows["train"]
    three = np.concatenate([train, data.rows["test"]])  # of all domains, for two shares
    sampler = held_out_batches(found, three, per_domain=2)
    tasks = jax.jit(jax.vmap(sampler))(jax.random.split(jax.random.key(0), 40))
    tasks = jax.tree.map(np.asarray, tasks)
    own = {
        image.tobytes(): (domain, label)
        for image, domain, label in zip(found.images, found.domains, found.labels)
    }
    for place in range(40):
        one = jax.tree.map(lambda leaf, place=place: leaf[place], tasks)
        numbers = [*np.repeat(one.info["domains"], 2), *[one.info["held_out"]] * 2]
        x = np.concatenate([one.support.x, one.query.x])
        y = np.concatenate([one.support.y, one.query.y])
        assert [own[image.tobytes()] for image in _bytes(x)] == list(zip(numbers, y))
    assert set(tasks.info["held_out"].tolist()) == {0, 1, 2}


def test_unlabelled_images_are_of_the_target_and_change_nothing_else(data):
    app = dataclasses.replace(TINY, unlabelled=5)
    keys = jax.random.split(jax.random.key(0), 20)
    found, plain = (
        jax.tree.map(np.asarray, jax.jit(jax.vmap(one.tasks(data, "train")))(keys))
        for one in (app, TINY)
    )
    own = {image.tobytes() for image in data.set.images[data.rows["test"]]}
    seen = {image.tobytes() for image in _bytes(found.info["target"].reshape(-1, 8, 8, 3))}
    assert seen == own and found.info["target"].shape == (20, 5, 8, 8, 3)
    np.testing.assert_array_equal(found.support.x, plain.support.x)
    np.testing.assert_array_equal(found.query.y, plain.query.y)
    assert "target" not in plain.info
    record = app.describe(data)
    assert "transductive" in record["about"]
    shapes = [jax.tree.map(np.shape, app.example(record))]
    shapes += [jax.tree.map(lambda leaf: leaf.shape[1:], found)]
    assert shapes[0] == shapes[1]


def test_each_image_is_judged_once(data):
    for part in ("validation", "test"):
        every = ml.tasks.in_order(TINY.tasks(data, part))
        assert every.num_tasks == 3
        batch = next(iter(every.batches(3, 0)))
        assert batch.query.mask.sum() == len(data.rows[part]) == 12
        seen = {image.tobytes() for image in _bytes(batch.query.x[batch.query.mask])}
        own = data.set.images[data.rows[part]]
        assert seen == {image.tobytes() for image in own}


def test_the_record_suffices_to_build(data):
    record = TINY.describe(data)
    assert json.loads(json.dumps(record)) == record
    like = jax.tree.map(lambda a: (a.shape, a.dtype), TINY.example(record))
    task = TINY.tasks(data, "train").first(jax.random.key(0))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), task) == like


@pytest.mark.parametrize("angle", [15, 75, -30])
def test_rotation_is_that_of_scipy(angle):
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 9)).astype(np.uint8)
    images[:, [0, -1]] = images[:, :, [0, -1]] = 0
    expected = scipy.ndimage.rotate(
        images.astype(float), angle, axes=(2, 1), reshape=False, order=1, mode="constant"
    )
    # scipy turns in the plane of its axes: (2, 1) is clockwise as images are shown.
    opposite = domains.rotated(images, -angle)
    same = domains.rotated(images, angle)
    gaps = [np.abs(found - expected).max() for found in (same, opposite)]
    assert min(gaps) <= 1 and max(gaps) > 20


def test_a_quarter_turn_is_counterclockwise():
    images = np.zeros((1, 5, 5), np.uint8)
    images[0, 0, 2] = 200  # the top
    assert np.argwhere(domains.rotated(images, 90)[0]).tolist() == [[2, 0]]  # the left


def _digits(root, images, labels):
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        head = bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">i4").tobytes()
        path = root / f"t10k-{name}-ubyte.gz"
        path.write_bytes(gzip.compress(head + array.tobytes()))


def test_each_digit_is_at_one_angle(tmp_path):
    labels = np.repeat(np.arange(10, dtype=np.uint8), 6)
    images = np.random.default_rng(0).integers(0, 256, (60, 28, 28)).astype(np.uint8)
    _digits(tmp_path, images, labels)
    found = domains.load_domains("rotated-mnist", tmp_path, angles=(0, 30))
    assert found.domain_names == ("0", "30") and found.images.shape == (60, 28, 28, 1)
    np.testing.assert_array_equal(found.images[::2, ..., 0], images[::2])
    np.testing.assert_array_equal(
        found.images[1::2, ..., 0], domains.rotated(images[1::2], 30)
    )
    np.testing.assert_array_equal(found.labels, labels)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    with pytest.raises(ValueError, match="59 values for an array"):
        domains.load_domains("rotated-mnist", tmp_path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be unpacked"):
        domains.load_domains("rotated-mnist", tmp_path)
    with pytest.raises(ValueError, match="0 and 360 are one"):
        domains.load_domains("rotated-mnist", tmp_path, angles=(0, 30, 360))


def _without(content, start):
    return {name: value for name, value in content.items() if not name.startswith(start)}


@pytest.mark.parametrize(
    ("content", "settings", "said"),
    [
        (_content(), {"target": "moon"}, "'moon', which is no domain of own.*field, lab"),
        (_without(_content(), "sea/bee"), {}, "no image of 1 of the classes.*sea/bee"),
        (_content(each=1), {}, "one image of 'ant' in the domain 'field'"),
        (_content(each=2), {}, "4 images for validation.*--app.eval-queries"),
        (_content(places=("lab",)), {}, "expected DOMAIN/CLASS/image"),
        (_content(places=("lab", "sea")), {}, "expected three or more"),
        (_content() | {"sea/bee/x/1.png": picture()}, {}, "'sea/bee/x'"),
        (_content() | {"sea/bee/1.png": picture(size=(9, 9))}, {}, "--app.image-size"),
    ],
)
def test_folders_that_are_no_domains_are_refused(tmp_path, content, settings, said):
    app = dataclasses.replace(TINY, **settings)
    with pytest.raises(ValueError, match=said):
        app.load(str(folder(tmp_path / "own", content)))


def test_images_beyond_the_memory_are_refused_at_the_first(root, monkeypatch):
    monkeypatch.setattr(cost, "host_memory", lambda: 2 * 36 * 64 * 64 * 3)
    assert domains.domain_folder(root, image_size=64).images.shape == (36, 64, 64, 3)
    with pytest.raises(
        ValueError, match=r"36 images of 65x65 pixels.*a smaller --app\.image-size"
    ):
        domains.domain_folder(root, image_size=65)


def test_images_beyond_the_memory_of_the_device_are_refused(data, monkeypatch):
    monkeypatch.setattr(cost, "memory", lambda: 2 * data.set.images.nbytes)
    TINY.tasks(data, "train")
    monkeypatch.setattr(cost, "memory", lambda: 2 * data.set.images.nbytes - 1)
    with pytest.raises(ValueError, match=r"on the device twice.*--app\.image-size"):
        TINY.tasks(data, "train")


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [("pacs", None, "no data_dir"), ("rotated-mnist", "", "they are not together in")],
)
def test_files_that_are_missing_are_named(tmp_path, name, given, said):
    with pytest.raises(FileNotFoundError, match=said):
        domains.load_domains(name, None if given is None else tmp_path)
    with pytest.raises(ValueError, match="Did you mean 'pacs'"):
        domains.load_domains("pac", tmp_path)


ARRAYS = {
    "images": np.zeros((4, 8, 8, 1), np.uint8),
    "labels": np.asarray([0, 1, 0, 1]),
    "domains": np.asarray([0, 0, 1, 1]),
    "class_names": ("a", "b"),
    "domain_names": ("c", "d"),
}


@pytest.mark.parametrize(
    "names",
    [{"a": 0, "b": 1}.keys(), np.array(["a", "b"]), (name for name in "ab"), "ab"],
)
def test_names_are_what_has_them_in_order(names):
    found = domains.domain_images(**{**ARRAYS, "class_names": names})
    assert found.class_names == ("a", "b")


def test_names_without_an_order_are_refused():
    with pytest.raises(TypeError, match="class_names is a set; expected a list of names"):
        domains.domain_images(**{**ARRAYS, "class_names": {"a", "b"}})


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"images": np.zeros((4, 8, 8, 1))}, TypeError, "dtype float64; expected uint8"),
        ({"images": np.zeros((4, 8, 8), np.uint8)}, ValueError, r"\[I, H, W, C\]"),
        ({"labels": np.zeros(4)}, TypeError, "class of each image has dtype float64"),
        ({"domains": np.asarray([0, 1])}, ValueError, "domain of each image has shape"),
        ({"labels": np.asarray([0, 1, 0, 2])}, ValueError, "class of image 3 is 2"),
        ({"domain_names": ("c",)}, ValueError, "two or more, each once"),
        ({"labels": np.asarray([0, 1, 0, 0])}, ValueError, "no image of 1 .*: d/b"),
        ({"labels": np.ma.masked_equal([0, 1, 0, 1], 0)}, ValueError, "2 values are"),
    ],
)
def test_arrays_are_checked(given, error, said):
    assert domains.domain_images(**ARRAYS).domain("d") == 1
    with pytest.raises(error, match=said):
        domains.domain_images(**{**ARRAYS, **given})


@pytest.mark.parametrize(
    ("settings", "learner", "said"),
    [
        ({}, learners.ProtoNet(), "does not fit a network with one logit"),
        ({}, learners.MAML(inner_opt=sgd(0.1)), "comes without a support set"),
        ({"validation_share": 1.0}, learners.MLDG(), "validation_share is 1.0"),
        ({"dataset": "rotated-mnist"}, learners.MLDG(), "app.target is 'lab'"),
        ({"angles": (0, 1, 2)}, learners.MLDG(), "app.angles=.* has no effect"),
        ({"norm": "group"}, learners.MLDG(norm="batch"), "read by app.norm batch"),
        (
            {"dataset": "rotated-mnist", "angles": (0, 75), "target": "75"},
            learners.MLDG(),
            "expected three or more",
        ),
        ({}, learners.MetaReg(pretrain_steps=1500), "pretrain_steps is 1500"),
        ({}, learners.DANN(), "unlabelled images of a target domain"),
        ({"unlabelled": 4}, learners.MLDG(), "app.unlabelled=4 has no effect"),
        ({"unlabelled": 0}, learners.DANN(), "app.unlabelled is 0"),
        ({"image_size": 10**6}, learners.MLDG(), "image_size=1000000 gives"),
    ],
)
def test_settings_are_checked(settings, learner, said):
    with pytest.raises(ValueError, match=said):
        Recipe(app=dataclasses.replace(TINY, **settings), learner=learner).check()


def test_a_run_from_the_command_line_is_judged_on_the_target_and_drawn(
    root, tmp_path, capsys
):
    out = tmp_path / "run"
    command = ["train", "domains-erm", "--data-dir", str(root), "--out", str(out)]
    command += ["--app.dataset", "own", "--app.target", "lab", "--app.width", "4"]
    command += ["--app.per-domain", "2", "--app.eval-queries", "5", "--steps", "2"]
    command += ["--app.validation-share", "0.5", "--validate-every", "2"]
    command += ["--log-every", "1", "--devices", "1"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "sources field, sea" in said and "target lab in order" in said
    assert (out / "episode.png").stat().st_size > 5_000
    run = runs.load(out)
    variables, _ = runs.best(run)
    result = runs.judge(run, variables, run.recipe.app.load(str(root)))
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert result.summary()["query/accuracy"] == pytest.approx(found["query/accuracy"])
    assert result.num_tasks == 3 and not result.transductive


def test_recipes_are_of_domains():
    assert all(name.startswith("domains-") for name in RECIPES)


def test_differences_are_of_seeds_and_their_interval_is_students():
    accuracy = {"a": np.asarray([[0.5, 0.6], [0.7, 0.8]])}
    accuracy["b"] = accuracy["a"] + np.asarray([[0.1, 0.1], [0.0, 0.2]])
    found = benchmark.compared(accuracy, "a")
    assert found["a"]["mean"] == pytest.approx(0.65) and "difference" not in found["a"]
    told = found["b"]["difference"]
    assert told["mean"] == pytest.approx(0.1)
    assert told["by_target"] == pytest.approx([0.1, 0.1])
    assert told["by_seed"] == pytest.approx([0.05, 0.15])
    half = scipy.stats.t.interval(0.95, 1, scale=scipy.stats.sem([0.05, 0.15]))[1]
    assert told["ci95"] == pytest.approx(half)
    found["b"]["settings"] = {"app": {"unlabelled": 32}}
    row = {"dataset": "own", "seeds": 2, "targets": ["x", "y"], "rows": found}
    lines = benchmark.table_rows(row)
    assert "| b, transductive | 65.0 % | 85.0 % | 75.0 % (+10.0 ± 63.5 points) |" in lines
    assert lines[-2].startswith("| a, inductive |")


def test_settings_are_chosen_on_the_sources_of_each_target(monkeypatch, tmp_path):
    seen = []

    def run(self, plan, seed):
        seen.append((plan.overrides, seed))
        # What is best on the sources is worst on the target.
        rate = next((v for v in plan.overrides if "rate" in v), "")
        value = 0.5 + 0.1 * ("0.01" in rate and "app.target=0" in plan.overrides)
        origin = {"machine": {}, "code": "a", "commit": "b"}
        return {
            "accuracy": 1 - value,
            "source_validation": value,
            "seconds": 1.0,
            "settings": {},
            "tasks": ["name", "digest", 3],
            "origin": origin,
        }

    monkeypatch.setattr(benchmark.Workshop, "run", run)
    monkeypatch.setattr(benchmark._runs, "here", lambda: run(None, PLAN, 0)["origin"])
    path = tmp_path / "found.json"
    benchmark.Domains(
        recipes=("domains-erm",),
        targets=("0", "75"),
        seeds=2,
        choose=("domains-erm:", "domains-erm:outer.rate=0.01"),
        json=str(path),
    ).run_benchmark()
    found = json.loads(path.read_text(encoding="utf-8"))["rows"]["domains-erm"]
    np.testing.assert_allclose(found["accuracy"], [[0.4, 0.4], [0.5, 0.5]])
    assert [(len(overrides), s) for overrides, s in seen if s] == [(2, 1), (1, 1)]
    assert len(found["tried"]["0"]) == 2


PLAN = types.SimpleNamespace(overrides=())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"recipes": ("sinusoid-maml",)}, "no recipe of domains"),
        ({"recipes": ("domains-erm",), "choose": ("domains-mldg:",)}, "--choose has"),
        ({"recipes": ("domains-erm",), "targets": ("0", "0")}, "each once"),
    ],
)
def test_a_benchmark_that_cannot_be_is_refused(given, said):
    with pytest.raises(SystemExit, match=said):
        benchmark.Domains(**given).run_benchmark()
    with pytest.raises(ValueError, match=r"app\.target is 'x'"):
        benchmark.Domains(recipes=("domains-erm",), targets=("x",)).run_benchmark()


@pytest.mark.parametrize("given", [["b", "a"], ["a", "b", "c"], ["a"]])
def test_other_classes_than_those_of_training_are_refused(given):
    record = {"name": "own", "class_names": ["a", "b"], "image_shape": [8, 8, 1]}
    run = types.SimpleNamespace(record=record)
    runs.check_images(run, record)
    with pytest.raises(ValueError, match=r"trained on the classes \['a', 'b'\]"):
        runs.check_images(run, record | {"class_names": given})
