"""Token vectors of wordllama, from tiny files with its names and layouts."""

import hashlib
import json

import numpy as np
import pytest
from few_texts import write_vectors, write_wordllama

from metalearn.core import optional
from metalearn.data.text import wordvectors
from metalearn.data.text.wordvectors import TOKENIZER, WEIGHTS, word_vectors

TRAIN = ["card xy", "car art", "tar"]


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "wordllama"
    tokens, vectors = write_wordllama(folder)
    return folder, tokens, vectors


def test_pieces_are_joined_in_the_order_of_the_merges(package):
    folder, tokens, _ = package
    found = word_vectors(TRAIN, dim=4, folder=folder)
    texts = ["card xy", "cart", "a  c", "é", "xyxyx", " d"]
    pieces = [
        ["▁card", "▁", "xy"],
        ["▁car", "t"],
        ["▁", "a", "▁", "▁c"],
        ["▁", "<0xC3>", "<0xA9>"],
        ["▁", "xy", "xy", "x"],
        ["▁", "▁", "d"],
    ]
    named = [[tokens[i] for i in row] for row in found.token_ids(texts)]
    assert named == pieces


def test_tokens_are_those_of_the_library_tokenizers(package):
    tokenizers = pytest.importorskip("tokenizers")
    folder, _, _ = package
    found = word_vectors(TRAIN, dim=4, folder=folder)
    theirs = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("acdrtxy é\n"), 12)) + "a" for _ in range(300)]
    expected = [t.ids for t in theirs.encode_batch(texts, add_special_tokens=False)]
    assert [row.tolist() for row in found.token_ids(texts)] == expected


@pytest.mark.parametrize("dtype", ["F16", "F32"])
@pytest.mark.parametrize("dim", [4, 3])
def test_vectors_are_centred_means(tmp_path, dtype, dim):
    folder = tmp_path / "made"
    tokens, vectors = write_wordllama(folder, dtype=dtype)
    features = word_vectors(TRAIN, dim=dim, folder=folder)
    vectors = vectors[:, :dim].astype(np.float64)

    def pooled(*pieces):
        mean = np.mean([vectors[tokens.index(piece)] for piece in pieces], axis=0)
        return mean / np.linalg.norm(mean)

    train = [pooled("▁card", "▁", "xy"), pooled("▁car", "▁", "ar", "t")]
    train += [pooled("▁", "t", "ar")]
    moved = pooled("▁car", "t") - np.mean(train, axis=0)
    expected = moved / np.linalg.norm(moved)
    found = features(["cart"])
    np.testing.assert_allclose(found, expected[None], rtol=1e-5)
    assert found.dtype == np.float32 and features.num_features == dim
    # The centre is that of the training texts whatever else is asked.
    np.testing.assert_array_equal(features(["tar", "cart"])[1:], found)


def test_an_unknown_script_is_told(package):
    folder, _, _ = package
    with pytest.warns(UserWarning, match="do not know the language or the script"):
        features = word_vectors(["日本", "карта"], dim=4, folder=folder)
    assert np.isfinite(features(["日"])).all()
    assert features.share_of_bytes(["é a"]) == 0.4


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(optional.PACKAGES, "wordllama", ("wordllama", "text"))
    monkeypatch.setattr(optional.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(optional.MissingPackage, match=r"wordllama .*metalearn-jax\[text\]"):
        word_vectors(TRAIN)


def test_the_folder_of_the_installed_package(package, monkeypatch):
    """Found without importing: the fake package has no file of Python that could run."""
    folder, _, _ = package
    monkeypatch.setitem(optional.PACKAGES, "wordllama", ("wordllama", "text"))
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    assert word_vectors(TRAIN, dim=4)(["card"]).shape == (1, 4)


def damaged_header(path, **changes):
    write_vectors(path, np.zeros((274, 4), np.float16), "F16", **changes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "is missing; expected the files of wordllama"),
        (lambda p: p.write_bytes(b"abc"), "no safetensors file of 3 bytes"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "expected as many as it takes"),
        (lambda p: p.write_bytes(b"\xff" * 99), "no safetensors file"),
        (lambda p: p.write_bytes((9).to_bytes(8, "little") + b"{" * 9), "header of"),
        (lambda p: damaged_header(p, dtype="BF16"), "of F16 or F32"),
        (lambda p: damaged_header(p, shape=[274]), "header of"),
        (lambda p: damaged_header(p, shape=[-274, -4]), "expected as many"),
        (lambda p: damaged_header(p, data_offsets=[2, 2]), "expected as many"),
        (lambda p: damaged_header(p, shape=[0, 4], data_offsets=[0, 0]), "no vectors"),
        (
            lambda p: write_vectors(p, np.full((274, 4), np.nan, np.float16), "F16"),
            "not finite",
        ),
    ],
)
def test_damaged_vectors_are_named(package, damage, message):
    path = package[0] / WEIGHTS
    damage(path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        word_vectors(TRAIN, dim=4, folder=package[0])
    assert str(path) in str(caught.value)


def edited(path, place, value):
    content = json.loads(path.read_text())
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda p: p.write_text("{"),
            "is not valid JSON .* the tokenizer of wordllama 0.4",
        ),
        (
            lambda p: p.write_text('{"model": 1, "model": 2}'),
            r"\['model'\] stand more than",
        ),
        (lambda p: p.write_text("[]"), "cannot be used"),
        (lambda p: edited(p, ["model", "type"], "Unigram"), "another kind"),
        (lambda p: edited(p, ["model", "vocab", "a"], 9999), "tokens without a vector"),
        (lambda p: edited(p, ["model", "vocab", "a"], "b"), "tokens without a vector"),
        (lambda p: edited(p, ["model", "vocab", "a▁b"], 3), "such as"),
        (lambda p: edited(p, ["model", "merges"], ["c d"]), "pairs without a token"),
        (lambda p: edited(p, ["model", "merges"], [["x"]]), "pairs without a token"),
    ],
)
def test_damaged_tokenizers_are_named(package, damage, message):
    path = package[0] / TOKENIZER
    damage(path)
    with pytest.raises(ValueError, match=message) as caught:
        word_vectors(TRAIN, dim=4, folder=package[0])
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", [WEIGHTS, TOKENIZER])
def test_a_huge_file_is_refused_before_it_is_read(package, monkeypatch, name):
    path = package[0] / name
    read = {
        WEIGHTS: wordvectors.read_vectors,
        TOKENIZER: lambda p: wordvectors.read_tokenizer(p, 999),
    }[name]
    read(path)
    monkeypatch.setattr(wordvectors, "_MOST_BYTES", path.stat().st_size - 1)
    with pytest.raises(ValueError, match=f"{path.name} takes .*; expected at most"):
        read(path)


def test_digests_are_of_the_bytes_that_are_read(package):
    found = word_vectors(TRAIN, dim=4, folder=package[0])
    files = [(package[0] / name).read_bytes() for name in (WEIGHTS, TOKENIZER)]
    assert found.sha256 == tuple(hashlib.sha256(data).hexdigest() for data in files)


def test_the_length_of_vectors_is_checked(package):
    for dim in (1, 5, 2.0):
        with pytest.raises(ValueError, match=f"dim is {dim}; expected .* 2 to 4"):
            word_vectors(TRAIN, dim=dim, folder=package[0])


def test_joining_many_letters_takes_few_passes(monkeypatch):
    """A pass joins all equal pairs; one at a time would take the square of the letters."""
    passes = []
    ranks = {("x", "y"): 0}
    get = ranks.get

    class Counting(dict):
        def get(self, *args):
            passes.append(1)
            return get(*args)

    found = wordvectors._joined(list("xy" * 500), Counting(ranks))
    assert found == ["xy"] * 500 and len(passes) < 2000
