"""Hashed n-grams: against scikit-learn where none share a bucket, by hand elsewhere."""

import numpy as np
import pytest

from metalearn.data.text import hashing
from metalearn.data.text.hashing import hashed_counts, hashed_texts, ngrams

TRAIN = ["Where is my card", "my card, my card", "a pin", "is it a fee"]
OTHER = ["where is it", "a new pin is my fee"]
WORDS, CHARACTERS = (1, 2), (3, 4)


def analyzer(sklearn_text):
    """N-grams of words and of characters by scikit-learn, told apart by their kind."""
    words = sklearn_text.CountVectorizer(
        ngram_range=WORDS, token_pattern=r"(?u)\w+|[^\w\s]"
    ).build_analyzer()
    characters = sklearn_text.CountVectorizer(
        ngram_range=CHARACTERS, analyzer="char_wb"
    ).build_analyzer()
    return lambda text: (
        [f"w {w}" for w in words(text)] + [f"c{c}" for c in characters(text)]
    )


def test_ngrams_are_those_of_scikit_learn():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    analyze = analyzer(text)
    for sentence in [*TRAIN, *OTHER]:
        found = sorted(ngrams(sentence, WORDS, CHARACTERS))
        assert found == sorted(analyze(sentence))


def test_products_are_those_of_scikit_learn():
    """Signs and buckets leave products as they are where no two n-grams share a bucket."""
    text = pytest.importorskip("sklearn.feature_extraction.text")
    grams = {g for t in [*TRAIN, *OTHER] for g in ngrams(t, WORDS, CHARACTERS)}
    dim = 2**16
    assert len({(hashing._place(gram) >> 1) % dim for gram in grams}) == len(grams)
    ours = hashed_texts(TRAIN, dim=dim, words=WORDS, characters=CHARACTERS)
    theirs = text.TfidfVectorizer(analyzer=analyzer(text), sublinear_tf=True)
    # Of n-grams that training has not, scikit-learn keeps none and we keep all.
    theirs.fit(TRAIN)
    a, b = ours(TRAIN), theirs.transform(TRAIN).toarray()
    np.testing.assert_allclose(a @ a.T, b @ b.T, rtol=1e-5, atol=1e-6)
    assert a.dtype == np.float32 and len(np.unique(np.sign(a))) == 3


def test_weights_by_hand():
    """Of four texts "card" is in two, and what training has not weighs most."""
    found = hashed_texts(TRAIN, dim=2**16, words=(1, 1), characters=(0, 0))
    for word, num in (("card", 2), ("pin", 1), ("unheard", 0)):
        bucket = (hashing._place(f"w {word}") >> 1) % 2**16
        weight = 1 + np.log((1 + 4) / (1 + num))
        np.testing.assert_allclose(found.weights[bucket], weight, rtol=1e-6)


def test_buckets_are_the_same_in_every_process():
    """Python's own `hash` of text differs from process to process."""
    assert hashing._place("w card") == 5865050698047791981  # by `b2sum -l 64`
    counts = hashed_counts(["card card"], 8, words=(1, 1), characters=(0, 0))
    assert counts.tolist() == [[0, 0, 0, 0, 0, 0, -2, 0]]


def test_shared_buckets_cancel_on_average():
    """Without signs the products of texts that share nothing would be far above zero."""
    first = [" ".join(f"a{i}x{j}" for j in range(8)) for i in range(60)]
    second = [text.replace("a", "b") for text in first]
    a, b = (hashed_counts(t, 16, words=(1, 1), characters=(0, 0)) for t in (first, second))
    product = (a @ b.T).mean()  # of unsigned counts 64 / 16
    assert abs(product) < 0.5
    np.testing.assert_allclose((np.abs(a).sum(1) % 2), 0)


def test_texts_of_any_language_have_vectors():
    texts = ["カードはどこ", "ما هو الحد", "👍", "...", "карта", "\ud800 x", "१२३"]
    found = hashed_texts(TRAIN, dim=64)(texts)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert len(np.unique(found, axis=0)) == len(texts)


def test_lists_of_sizes_are_as_good_as_tuples():
    made = hashed_texts(TRAIN, dim=64, words=[1, 2], characters=[0, 0])
    assert (made.words, made.characters) == ((1, 2), (0, 0))


def test_one_form_of_each_text():
    found = hashed_texts(TRAIN, dim=64)
    a, b = found(["Café  CARD", "cafe\u0301 card"])
    np.testing.assert_array_equal(a, b)


def test_counts_that_cancel_are_zero_and_no_nan():
    features = hashed_texts(TRAIN, dim=2, words=(1, 1), characters=(0, 0))
    words = [f"w{i}" for i in range(20)]
    counts = hashed_counts(words, 2, words=(1, 1), characters=(0, 0))
    first = next(w for w, c in zip(words, counts) if c[0] == 1)
    second = next(w for w, c in zip(words, counts) if c[0] == -1)
    assert features([f"{first} {second}"]).tolist() == [[0, 0]]


def test_weights_come_from_the_training_texts_alone():
    features = hashed_texts(TRAIN, dim=64)
    together = features([*OTHER, *TRAIN])
    np.testing.assert_array_equal(together[: len(OTHER)], features(OTHER))
    assert not np.array_equal(hashed_texts(OTHER, dim=64)(OTHER), features(OTHER))


@pytest.mark.parametrize(
    ("texts", "settings", "error", "message"),
    [
        ("a card", {}, TypeError, "expected a list of texts"),
        ([], {}, ValueError, "texts is empty"),
        (["a", 3], {}, TypeError, "text 1 is a int"),
        (["a", "\t\u200b"], {}, ValueError, "text 1 is .*expected a visible character"),
        (["a"], {"dim": 1}, ValueError, "dim is 1; expected a number of buckets"),
        (["a"], {"dim": True}, ValueError, "dim is True"),
        (["a"], {"dim": 2**17}, ValueError, "dim is 131072"),
        (["a"], {"words": (2, 1)}, ValueError, r"words is \(2, 1\)"),
        (["a"], {"words": (1, 2, 3)}, ValueError, r"words is \(1, 2, 3\)"),
        (["a"], {"words": 2}, TypeError, "words is 2; expected the shortest and the long"),
        (["a"], {"characters": "34"}, TypeError, "characters is '34'; expected the short"),
        (["a"], {"characters": (0, 3)}, ValueError, r"characters is \(0, 3\)"),
        (["a"], {"words": (0, 0), "characters": (0, 0)}, ValueError, "some n-grams"),
    ],
)
def test_nonsense_is_refused(texts, settings, error, message):
    with pytest.raises(error, match=message):
        hashed_texts(texts, **settings)
