"""`metalearn predict`: own images are read as those of training, and classified."""

import json
import zipfile

import jax
import numpy as np
import pytest
from commands import _png, ok, refused
from PIL import Image

import metalearn as ml
from metalearn import runs
from metalearn.apps import FewShotImages, Recipe, learners, plots, sgd
from metalearn.apps.images import own, pictures
from metalearn.apps.images.own import read_own
from metalearn.cli import predict as command
from metalearn.data.images.limits import within
from metalearn.runs import prediction

# Orbax leaves its event loop and threads to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

COUNTS = {"alpha": 2, "beta": 1, "gamma": 3}


def folder_of(root, counts=COUNTS, channels=1, size=28, seed=5):
    rng = np.random.default_rng(seed)
    for name, number in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(number):
            (root / name / f"{i}.png").write_bytes(_png(rng, channels, size))
    return root


@pytest.fixture
def support(tmp_path):
    return folder_of(tmp_path / "support")


@pytest.fixture
def new(tmp_path):
    """Two images to classify."""
    rng = np.random.default_rng(6)
    paths = [tmp_path / f"{name}.png" for name in ("one", "two")]
    for path in paths:
        path.write_bytes(_png(rng))
    return paths


def image(path, array):
    Image.fromarray(array).save(path)
    return path


def record(size=28, channels=1, name="folder_x"):
    return {"name": name, "image_shape": [size, size, channels]}


# -- Reading -----------------------------------------------------------------------------


def test_classes_and_labels_are_those_of_the_folders(support, new):
    found = read_own(FewShotImages(), record(), support=support, images=new)
    assert found.class_names == ("alpha", "beta", "gamma")
    assert found.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert found.support.shape == (6, 28, 28, 1) and found.queries.shape == (2, 28, 28, 1)
    assert found.files == tuple(map(str, new))
    one = np.asarray(Image.open(support / "beta" / "0.png").convert("L"))
    np.testing.assert_array_equal(found.support[2, ..., 0], one)
    np.testing.assert_array_equal(found.queries[1, ..., 0], np.asarray(Image.open(new[1])))
    assert found.inverted == 0


def test_images_become_what_a_data_set_would_be(tmp_path, support):
    """The same photograph through `ml.data.load`, whose images training sees."""
    from metalearn import data

    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (40, 61, 3), np.uint8)
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        image(tmp_path / "set" / name / "0.png", photo)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
        loaded = data.load(f"folder:{tmp_path / 'set'}", split="test", image_size=32)
    given = tmp_path / "set" / "a" / "0.png"
    found = read_own(FewShotImages(), record(32, 3), support=support, images=[given])
    np.testing.assert_array_equal(found.queries[0], loaded.test.images[0])
    # And halved, as `shrink` does.
    app = FewShotImages(shrink=2)
    half = read_own(app, record(16, 3), support=support, images=[given]).queries[0]
    means = loaded.test.images[0].reshape(16, 2, 16, 2, 3).mean((1, 3))
    np.testing.assert_array_equal(half, np.rint(means))


def test_dark_drawings_are_inverted_for_light_strokes(tmp_path, support):
    drawing = np.full((56, 56), 255, np.uint8)
    drawing[:, 20:24] = 0  # a dark stroke on light paper
    given = [
        image(tmp_path / "dark.png", drawing),
        image(tmp_path / "l.png", 255 - drawing),
    ]
    for name, invert, expected in (
        ("omniglot", "auto", (True, False)),
        ("glyphs", "auto", (True, False)),
        ("folder_x", "auto", (False, False)),
        ("folder_x", "yes", (True, True)),
        ("omniglot", "no", (False, False)),
    ):
        found = read_own(
            FewShotImages(), record(name=name), support=support, images=given, invert=invert
        )
        for pixels, path, flipped in zip(found.queries, given, expected):
            whole = np.asarray(Image.open(path)).astype(float)
            # By hand: 2x2 pixels become their mean, if the set has area averages.
            mean = whole.reshape(28, 2, 28, 2).mean((1, 3))
            mean = 255 - mean if flipped else mean
            assert np.abs(pixels[..., 0] - mean).max() < (1 if name == "omniglot" else 80)
            assert np.median(pixels) == np.median(mean)


def test_folders_and_archives_of_images(tmp_path, support):
    folder_of(tmp_path / "more", {"x": 2, "y": 1})
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for path in sorted(support.rglob("*.png")):
            archive.write(path, f"letters/{path.relative_to(support)}")
    found = read_own(
        FewShotImages(), record(), support=tmp_path / "s.zip", images=[tmp_path / "more"]
    )
    assert found.class_names == ("alpha", "beta", "gamma")
    assert len(found.files) == 3
    whole = read_own(FewShotImages(), record(), support=support, images=[support])
    np.testing.assert_array_equal(found.support, whole.queries)


def test_all_images_that_cannot_be_used_are_named(tmp_path, support, new):
    (support / "beta" / "broken.png").write_bytes(b"no image")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ValueError, match="2 of 10 images cannot be used") as caught:
        read_own(
            FewShotImages(),
            record(),
            support=support,
            images=[*new, tmp_path / "empty.png"],
        )
    assert "broken.png" in str(caught.value) and "empty.png" in str(caught.value)
    many = [image(tmp_path / f"m{i}.png", np.zeros((9, 20), np.uint8)) for i in range(30)]
    wide = {"name": "folder_x", "image_shape": [28, 30, 1]}
    with pytest.raises(ValueError, match="and 17 more") as caught:
        read_own(FewShotImages(), wide, support=support, images=many)
    assert "20x9 pixels; the run was trained on 30x28" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, tmp: a.update(images=[]), "no images to classify"),
        (lambda a, tmp: a.update(images=[tmp / "no.png"]), "no.png does not exist"),
        (lambda a, tmp: a.update(images=["/dev/null"]), "/dev/null is no file"),
        (lambda a, tmp: a.update(support=tmp / "no"), "does not exist"),
        (lambda a, tmp: a.update(support=folder_of(tmp / "f", {"a": 2})), "of 1 classes"),
        (lambda a, tmp: (tmp / "e").mkdir() or a.update(support=tmp / "e"), "no image"),
        (lambda a, tmp: (tmp / "e").mkdir() or a.update(images=[tmp / "e"]), "no image"),
        (lambda a, tmp: a.update(invert="maybe"), "expected one of auto, yes, no"),
        (
            lambda a, tmp: image(a["support"] / "l.png", np.zeros((9, 9), np.uint8)),
            "in no class folder",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, support, new, change, message):
    arguments = {"support": support, "images": new}
    change(arguments, tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        read_own(FewShotImages(), record(), **arguments)


def test_a_huge_file_is_not_read(tmp_path, support, new, monkeypatch):
    size = max(path.stat().st_size for path in support.rglob("*.png"))
    new[0].write_bytes(bytes(size + 1))
    small = within(max_file_bytes=size)
    with small, pytest.raises(ValueError, match=rf"max_file_bytes={size}\. .*option"):
        read_own(FewShotImages(), record(), support=support, images=new)


@pytest.mark.parametrize("suffix", ["heic", "npy", "svg"])
def test_a_class_without_a_readable_image_is_not_lost(tmp_path, support, new, suffix):
    """Its images would be put into the classes that are left."""
    (support / "delta").mkdir()
    (support / "delta" / f"0.{suffix}").write_bytes(b"x")
    words = rf"lost as classes: 'delta' .*\.{suffix} 1.*or move the folder away\."
    with pytest.raises(ValueError, match=words):
        read_own(FewShotImages(), record(), support=support, images=new)


def test_names_of_classes_are_those_of_a_data_set(tmp_path, new):
    """One form of accents, and a folder that holds one archive."""
    composed, apart = "caf\u00e9", "cafe\u0301"
    folder_of(tmp_path / "s", {apart: 1, "tea": 1})
    (tmp_path / "packed").mkdir()
    with zipfile.ZipFile(tmp_path / "packed" / "s.zip", "w") as archive:
        for path in sorted((tmp_path / "s").rglob("*.png")):
            archive.write(path, str(path.relative_to(tmp_path / "s")))
    for support in (tmp_path / "s", tmp_path / "packed"):
        found = read_own(FewShotImages(), record(), support=support, images=new)
        assert found.class_names == (composed, "tea")


# -- Predicting --------------------------------------------------------------------------


@pytest.fixture
def without_training(tmp_path, monkeypatch):
    """Makes a run of a recipe with the variables that it starts from."""

    def make(learner, **app):
        settings = {"ways": 4, "width": 4, "norm": "none", **app}
        recipe = Recipe(app=FewShotImages(**settings), learner=learner)
        facts = record()
        run = runs.Run(folder=tmp_path, name="x", recipe=recipe, seed=0, record=facts)
        task = recipe.app.example(facts)
        variables = jax.jit(recipe.build(facts).init)(jax.random.key(0), task)
        monkeypatch.setattr(prediction, "best", lambda run: (variables, {}))
        return run, variables

    return make


def test_a_metric_learner_takes_any_number_of_classes(tmp_path, new, without_training):
    many = folder_of(tmp_path / "many", {f"c{i}": 1 + i % 2 for i in range(9)})
    run, variables = without_training(learners.ProtoNet())
    found = runs.predict(run, support=many, images=new)
    assert found.probabilities.shape == (2, 9)
    np.testing.assert_allclose(found.probabilities.sum(-1), 1, rtol=1e-5)
    # By hand from the embeddings: squared distances to the means of the classes.
    offers = run.recipe.app.offers(run.recipe.learner, run.record, evaluating=True)
    encode = jax.jit(lambda x: offers["encoder"].apply(variables, x)[0])
    embed = lambda x: np.asarray(encode(x / np.float32(255)), np.float64)
    support, queries = embed(found.images.support), embed(found.images.queries)
    means = [support[found.images.labels == c].mean(0) for c in range(9)]
    logits = -np.array([[np.sum((q - m) ** 2) for m in means] for q in queries])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, expected, rtol=2e-3, atol=1e-5)
    for row, classes in zip(found.rows(), found.classes, strict=True):
        assert row["class"] == f"c{classes}"
        assert row["probability"] == max(row["probabilities"].values())


REPTILE = {"num_steps": 1, "eval_steps": 2, "batch_size": 2, "eval_batch_size": 2}


@pytest.mark.parametrize(
    "learner",
    [learners.MAML(inner_opt=sgd(0.1)), learners.Reptile(inner_opt=sgd(0.1), **REPTILE)],
    ids=["maml", "reptile"],
)
def test_absent_classes_of_a_fixed_head_are_not_predicted(
    learner, support, new, without_training
):
    run, _ = without_training(learner)
    found = runs.predict(run, support=support, images=new)
    assert found.probabilities.shape == (2, 3)
    np.testing.assert_allclose(found.probabilities.sum(-1), 1, rtol=1e-5)
    assert {row["class"] for row in found.rows()} <= set(COUNTS)
    assert [len(row["probabilities"]) for row in found.rows()] == [3, 3]


def test_more_classes_than_a_fixed_head_has_are_refused(tmp_path, new, without_training):
    many = folder_of(tmp_path / "many", {f"c{i}": 1 for i in range(5)})
    run, _ = without_training(learners.MAML(inner_opt=sgd(0.1)))
    with pytest.raises(ValueError, match="has 5 classes, but the head of maml") as caught:
        runs.predict(run, support=many, images=new)
    assert "--app.ways 5" in str(caught.value)


def test_only_runs_on_images(trained_sine, support, new):
    with pytest.raises(ValueError, match="is a run of kind 'sinusoid'"):
        runs.predict(trained_sine, support=support, images=new)


# -- The command -------------------------------------------------------------------------


def test_the_command(trained, support, new, tmp_path):
    picture = tmp_path / "picture.png"
    words = ("predict", trained, "--support", support, "--images", *new)
    found = json.loads(ok(*words, "--json", "--out", picture))
    assert [row["file"] for row in found["images"]] == list(map(str, new))
    assert found["support"] == COUNTS
    assert found["picture"] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    same = runs.predict(trained, support=support, images=new)
    assert found["images"] == same.rows()
    # By hand: the learner as it is evaluated, without `ml.predict`.
    opened = runs.load(trained)
    learner = opened.recipe.build_judged(opened.record)
    x = same.images.support.astype(np.float32) / 255
    variables = runs.best(opened)[0]
    adapted = jax.jit(learner.adapt)(variables, ml.Examples.of(x, same.images.labels))
    logits = jax.jit(learner.predict)(adapted, same.images.queries / np.float32(255))
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(same.probabilities, expected, rtol=1e-3, atol=1e-5)
    out = command._in_words(found)
    best = found["images"][0]
    assert best["class"] in out and f"{best['probability']:.1%}" in out
    assert "alpha 2, beta 1, gamma 3" in out


def test_the_command_refuses(trained, support, new, tmp_path):
    four = folder_of(tmp_path / "four", {n: 1 for n in "abcd"})
    err = refused("predict", trained, "--support", four, "--images", new[0])
    assert "4 classes" in err and "--app.ways 4" in err
    (tmp_path / "bad.png").write_bytes(b"x")
    err = refused(
        "predict", trained, "--support", support, "--images", tmp_path / "bad.png"
    )
    assert "bad.png" in err and "nothing was predicted" in err
    inside = next(support.rglob("*.png"))
    for read in (new[0], inside):  # the picture would replace it
        before = read.read_bytes()
        words = ("predict", trained, "--support", support, "--images", new[0])
        assert "one of the images that are read" in refused(*words, "--out", read)
        assert read.read_bytes() == before


def test_a_picture_of_many(tmp_path):
    """More classes, examples and images than fit, and names that a font lacks."""
    rng = np.random.default_rng(0)
    names = tuple(f"$é_{i}" for i in range(20))
    images = own.OwnImages(
        class_names=names,
        labels=np.repeat(np.arange(20, dtype=np.int32), 6),
        support=rng.integers(0, 256, (120, 8, 8, 3), np.uint8),
        files=tuple(f"a/{i}.png" for i in range(60)),
        queries=rng.integers(0, 256, (60, 8, 8, 3), np.uint8),
        inverted=0,
    )
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "show_image", lambda ax, image, colour: drawn.append(image))
        least = {"max_ways": 5, "max_shots": 2, "max_images": 9}
        probabilities = np.eye(20)[:1].repeat(60, 0)
        title = r"by the examples in $\foo$/$x_{"  # no formula
        pictures.predictions(
            tmp_path / "p.png", images, probabilities, title=title, **least
        )
    assert (tmp_path / "p.png").stat().st_size > 0
    assert len(drawn) == 5 * 2 + 9
    assert plots.letter(0) == "A"
