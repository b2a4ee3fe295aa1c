"""`metalearn predict` of a run on texts: vectors of training, examples of the user."""

import json

import jax
import numpy as np
import pytest
from commands import ok, refused
from few_texts import sentences, write_own

import metalearn as ml
from metalearn import runs
from metalearn.apps.text import own
from metalearn.runs import prediction

# Orbax leaves its event loop and threads to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

SETTINGS = {
    "app.dataset": "own",
    "app.dim": 64,
    "app.ways": 2,
    "app.widths": 4,
    "app.queries": 2,
    "app.eval-queries": 2,
    "app.eval-ways": 2,
    "steps": 2,
    "validate-every": 2,
    "validation-tasks": 2,
    "test-tasks": 2,
    "log-every": 2,
    "checkpoint-every": 2,
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A run on texts, and the folder of its texts."""
    root = tmp_path_factory.mktemp("texts")
    folder = write_own(root / "data")
    settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
    ok("train", "text-protonet", *settings, "--data-dir", folder, "--out", root / "run")
    return root / "run", folder


@pytest.fixture
def support(tmp_path):
    """Two examples of each of three classes that training has not seen."""
    path, names = tmp_path / "intents.csv", ("limit", "topup", "cash")
    rows = [f'"{text}",{name}' for name in names for text in sentences(name)[:2]]
    path.write_text("\n".join(["text,category", *rows]), encoding="utf-8")
    return path


def test_texts_are_classified_as_by_hand(texts, support):
    run, folder = texts
    asked = [sentences("topup")[3], sentences("cash")[4]]
    found = runs.predict_texts(run, support=support, texts=asked)
    assert found.texts.class_names == ("cash", "limit", "topup")
    assert found.texts.labels.tolist() == [1, 1, 2, 2, 0, 0]
    loaded = runs.load(run)
    features = loaded.recipe.app.load(str(folder), ()).features
    rows = [row.text for row in own.read_examples(support)]
    examples = ml.Examples.of(features(rows), found.texts.labels)
    variables, _ = runs.best(loaded)
    learner = prediction.for_ways(loaded.recipe, 3, support).build_judged(loaded.record)
    adapted = learner.adapt(variables, examples, key=jax.random.key(0))
    logits = learner.predict(adapted, features(asked))
    np.testing.assert_allclose(
        found.probabilities, jax.nn.softmax(np.asarray(logits), -1), atol=1e-5
    )
    names = [found.texts.class_names[best] for best in np.argmax(logits, -1)]
    assert [row["class"] for row in found.rows()] == names


def test_the_command(texts, support, tmp_path):
    run, _ = texts
    more = tmp_path / "new.txt"
    more.write_text(
        f"{sentences('topup')[4]}\r\n\n{sentences('cash')[5]}\n", encoding="utf-8"
    )
    words = ("predict", run, "--support", support, "--texts", sentences("limit")[3])
    out = ok(*words, "--texts-in", more)
    assert "protonet on texts; support: cash 2, limit 2, topup 2" in out
    found = json.loads(ok(*words, "--texts-in", more, "--json"))
    assert [row["class"] for row in found["texts"]] == ["limit", "topup", "cash"]
    assert found["texts"][1]["text"] == sentences("topup")[4]


def test_lines_end_in_every_way_and_stay_lines(texts, support, tmp_path):
    more = tmp_path / "new.txt"
    more.write_bytes(b"my card\rmy pin\r\nred \x1b[31m alarm\n" + b"word " * 40)
    out = ok("predict", texts[0], "--support", support, "--texts-in", more)
    rows = out.strip().splitlines()[2:]
    assert len(rows) == 4 and "\x1b" not in out
    assert rows[3].strip().startswith("word word") and "…" in rows[3]


def lines(path, *rows):
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: {"support": at / "none.csv"}, "none.csv is missing"),
        (lambda at: {"support": at}, "NAME.csv with the columns text and category"),
        (
            lambda at: {"support": lines(at / "a.csv", "text,category", "a b,one")},
            "has one class, 'one'",
        ),
        (
            lambda at: {"support": lines(at / "a.jsonl", '{"sentence": "", "label": "a"}')},
            "1 texts are empty, the first at line 1 of",
        ),
        (lambda at: {"support": lines(at / "a.csv", "text,category", "")}, "no example"),
        (lambda at: {"data_dir": str(at / "gone")}, "not together in"),
        (lambda at: {"texts": []}, "texts is empty"),
        (lambda at: {"texts": ["a", "\u200b"]}, "text 1 is"),
        (lambda at: {"texts": ["a" * 3000]}, "longer than max_characters=2000"),
    ],
)
def test_what_cannot_be_used_is_named(texts, support, tmp_path, make, message):
    given = {"support": support, "texts": ["a"], **make(tmp_path)}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        runs.predict_texts(texts[0], **given)


def test_vectors_of_other_texts_are_refused(texts, support, tmp_path):
    """Their statistics would make other vectors, of which the network knows nothing."""
    other = write_own(
        tmp_path / "other",
        rows=[
            (f"{text} today", label)
            for label in ("lost", "pin", "rate", "fee", "cash", "limit", "topup")
            for text in sentences(label)
        ],
    )
    with pytest.raises(ValueError, match=r"texts of own in .* other numbers"):
        runs.predict_texts(texts[0], support=support, texts=["a"], data_dir=str(other))


def test_mistakes_of_the_command(texts, support, tmp_path, trained_sine):
    run, _ = texts
    words = ("predict", run, "--support", support, "--texts", "a")
    assert "needs --images or --texts" in refused(*words[:4])
    assert "needs --support" in refused("predict", run, "--texts", "a")
    assert "--max-files is of images" in refused(*words, "--max-files", 3)
    assert "--out is of images" in refused(*words, "--out", tmp_path / "a.png")
    assert "--images is of images" in refused(*words, "--images", "a.png")
    images = ("predict", run, "--support", tmp_path, "--images", "a.png")
    assert "read for texts alone" in refused(*images, "--data-dir", tmp_path)
    assert "kind 'text'" in refused(*images)
    assert "kind 'sinusoid'" in refused("predict", trained_sine, *words[2:])
    empty = lines(tmp_path / "empty.txt", "", " ")
    assert "holds no text" in refused(*words[:4], "--texts-in", empty)
