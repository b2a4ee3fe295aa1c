"""Sets of texts: their layouts, their folds, and what is refused with its place."""

import json

import numpy as np
import pytest
from few_texts import CLASSES, WORDS, sentences, write_own

from metalearn.data.text import files, sets
from metalearn.data.text.sets import load_texts

BANKING = """text,category
Where is my card?,lost
"My card, which is new, is gone",lost
I forgot my PIN,pin
"two
lines",pin
What is the fee,fee
"""


def write_banking(folder, train=BANKING, test="text,category\nHow much,limit\nAll,limit\n"):
    folder.mkdir(parents=True)
    (folder / "train.csv").write_bytes(
        train if isinstance(train, bytes) else train.encode()
    )
    (folder / "test.csv").write_text(test, encoding="utf-8")
    folds = {"train": ["pin", "lost"], "valid": ["fee"], "test": ["limit"]}
    (folder / "few_shot_folds.json").write_text(json.dumps({"01": folds}))
    return folder


def relation(*words, head=0, tail=-1):
    return {
        "tokens": list(words),
        "h": ["h", "Q1", [[head]]],
        "t": ["t", "Q2", [[tail % len(words)]]],
    }


def write_fewrel(folder, wiki=None, nyt=("P2", "P90", "P91"), num=2):
    folder.mkdir(parents=True, exist_ok=True)
    wiki = [f"P{n}" for n in range(2, 18)] if wiki is None else wiki
    for name, labels in (("wiki", wiki), ("nyt", nyt), ("pubmed", ["causes", "treats"])):
        content = {
            label: [relation(f"{name}{i}", label, "end") for i in range(num)]
            for label in labels
        }
        (folder / f"val_{name}.json").write_text(json.dumps(content))
    (folder / "pid2name.json").write_text(json.dumps({"P3": ["mother", "a parent"]}))
    return folder


def test_banking_has_the_texts_of_both_files(tmp_path):
    write_banking(tmp_path / "banking77")
    found = load_texts("banking77", tmp_path)  # the folder above
    assert found.fold == "01" and list(found.parts) == ["train", "validation", "test"]
    train = found.parts["train"]
    assert train.class_names == ("lost", "pin") and train.labels.tolist() == [0, 0, 1, 1]
    assert train.labels.dtype == np.int32
    assert train.texts[1:] == (
        "My card, which is new, is gone",
        "I forgot my PIN",
        "two\nlines",
    )
    assert found.parts["test"].texts == ("How much", "All")
    again = load_texts("banking77", tmp_path / "banking77")  # the folder itself
    assert again.parts["train"].digest == train.digest != found.parts["test"].digest


def test_a_byte_order_mark_and_lines_of_windows(tmp_path):
    content = BANKING.replace("\n", "\r\n").encode("utf-8-sig")
    write_banking(tmp_path / "banking77", content)
    train = load_texts("banking77", tmp_path).parts["train"]
    assert train.texts[0] == "Where is my card?"


def test_own_texts_and_folds(tmp_path):
    other = {"train": ["fee"], "validation": ["pin"], "test": ["lost"]}
    write_own(tmp_path, folds={"01": CLASSES, "b": other})
    found = load_texts("own", tmp_path, fold="b")
    assert {p: c.class_names for p, c in found.parts.items()} == {
        "train": ("fee",),
        "validation": ("pin",),
        "test": ("lost",),
    }
    assert found.info["unused"] == ["cash", "limit", "rate", "topup"]
    with pytest.raises(ValueError, match=r"fold is '2', which .* has not; .* 01, b"):
        load_texts("own", tmp_path, fold="2")


def test_repeated_texts_are_left_out_and_counted(tmp_path):
    rows = [(text, label) for label in WORDS for text in sentences(label)]
    twice = [("MY  " + rows[0][0][3:], "lost"), rows[1]]
    both = [(rows[0][0], "pin"), (rows[2][0], "fee")]
    write_own(tmp_path, rows=rows + twice + both)
    found = load_texts("own", tmp_path)
    kept = load_texts("own", tmp_path, drop_repeated=False)
    assert np.bincount(found.parts["train"].labels).tolist() == [6, 7, 6]
    assert np.bincount(kept.parts["train"].labels).tolist() == [8, 7, 6]
    for info in (found.info, kept.info):
        assert info["repeated"] == 2
        assert (info["in_two_classes"], info["in_two_parts"]) == (2, 1)


def test_huffpost_numbers_are_classes(tmp_path):
    lines = [
        json.dumps({"raw": f"headline {i} {j}", "label": i})
        for i in range(41)
        for j in "ab"
    ]
    (tmp_path / "huffpost.jsonl").write_text("\n".join(lines))
    found = load_texts("huffpost41", tmp_path)
    numbers = {p: sorted(map(int, c.class_names)) for p, c in found.parts.items()}
    assert numbers == {
        "train": list(range(20)),
        "validation": list(range(20, 25)),
        "test": list(range(25, 41)),
    }
    part = found.parts["test"]
    for text, label in zip(part.texts, part.labels):
        assert text.split()[1] == part.class_names[label]


def test_relations_of_training_are_not_tested(tmp_path):
    """News and Wikipedia share relations, which must not be trained on and then tested."""
    write_fewrel(tmp_path)
    found = load_texts("fewrel", tmp_path)
    names = {p: c.class_names for p, c in found.parts.items()}
    assert found.fold == "nyt" and names["test"] == ("P90", "P91")
    assert set(names["validation"]) == {"mother (P3)", "P6", "P9", "P12", "P15"}
    assert len(names["train"]) == 11
    assert all(text.split()[1].startswith("nyt") for text in found.parts["test"].texts)
    medical = load_texts("fewrel", tmp_path, fold="pubmed").parts
    assert medical["test"].class_names == ("causes", "treats")
    assert medical["train"].digest == found.parts["train"].digest
    within = {
        part: set(classes.class_names)
        for part, classes in load_texts("fewrel", tmp_path, fold="wiki").parts.items()
    }
    assert within["test"] == {"P2", "P4", "P5", "P7", "P8"}
    assert within["validation"] == set(names["validation"])
    assert within["train"] == set(names["train"]) - within["test"]


def test_all_mentions_are_marked():
    words = ["the", "old", "bridge", "at", "the", "bridge", "crosses", "Wye"]
    found = files.marked(words, {"h": [[1, 2], [5]], "t": [[7]]})
    assert found == (
        "the _head_ old bridge _endhead_ at the _head_ bridge _endhead_ crosses "
        "_tail_ Wye _endtail_"
    )
    # One entity within another: what opens last closes first.
    assert files.marked(["a", "b"], {"h": [[0, 1]], "t": [[1]]}) == (
        "_head_ a _tail_ b _endtail_ _endhead_"
    )


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ({"tokens": ["a", "b"]}, "KeyError: 'h'"),
        (relation("a", "b", head=2), "IndexError"),
        (relation("a", "b", head=-1), r"mention of 'h' is at \[-1\]"),
        ({**relation("a", "b"), "t": ["t", "Q", []]}, "no place of 't'"),
        ({**relation("a", "b"), "t": ["t", "Q", [[]]]}, "mention of 't' is at"),
        ({**relation("a", "b"), "tokens": ["a", 3]}, "TypeError"),
        ({**relation("a", "b"), "tokens": "ab"}, "TypeError: the tokens are a str"),
    ],
)
def test_sentences_without_entities_are_named(tmp_path, sentence, message):
    path = tmp_path / "val_wiki.json"
    path.write_text(json.dumps({"P7": [relation("a", "b"), sentence]}))
    with pytest.raises(ValueError, match=message) as caught:
        list(files.fewrel_rows(path))
    assert f"sentence 1 of relation 'P7' of {path}" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text;category\na;b\n", r"has the columns \['text;category'\]; expected 'text'"),
        ("", r"has the columns \[\]"),
        ("text,category,text\na,lost,b\n", "has several columns of the name 'text'"),
        ("category,text,category\na,b,c\n", "has several columns of the name 'category'"),
        ("text,category\na,lost\nb, c,lost\n", "line 3 of .* has 3 columns; expected 2"),
        ('text,category\n"a,lost\n', "is no CSV: unexpected end of data"),
        ('text,category\n"a" b,lost\n', "line 2 of .* is no CSV"),
        ("text,category\na,lost\n ,lost\n\u200b,pin\n", "2 texts are empty, .* line 3 of"),
        ("text,category\na, \n", "line 2 of .* has no class"),
        ("text,category\n" + "a" * 200_000 + ",lost\n", "line 2 of .* is no CSV: field"),
        ("text,category\n" + "a" * 2001 + ",lost\n", "line 2 of .* with 2,001 characters"),
        (b"text,category\n\xff\xfe,lost\n", "train.csv is not text in UTF-8"),
    ],
)
def test_bad_csv_is_named(tmp_path, content, message):
    folder = write_banking(tmp_path / "banking77", content)
    with pytest.raises(ValueError, match=message) as caught:
        load_texts("banking77", tmp_path)
    assert str(folder / "train.csv") in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[1]", "expected an object with 'sentence' and 'label'"),
        (
            '{"label": "pin", "sentence": "a", "label": "fee"}',
            r"keys \['label'\] stand more",
        ),
        ('{"sentence": "a"}', "expected an object"),
        ('{"sentence": null, "label": "lost"}', "NoneType of class 'lost'"),
        ('{"sentence": "a", "label": 1.5}', "a str of class 1.5"),
        ('{"sentence": "a", "label": true}', "a str of class True"),
        ('{"sentence": "\\ud800", "label": "lost"}', "is not text in Unicode"),
        ('{"sentence": "\\t", "label": "lost"}', "1 texts are empty"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    folder = write_own(tmp_path / "own")
    path = folder / "full.jsonl"
    path.write_text(f"{path.read_text().splitlines()[0]}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        load_texts("own", tmp_path)
    assert f"line 3 of {path}" in str(caught.value)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ({"01": CLASSES | {"test": ["nothing"]}}, "1 classes that are not among the texts"),
        ({"01": CLASSES | {"test": ["lost"]}}, "'lost' is in 'train' and again in 'test'"),
        ({"01": {"train": ["lost"], "test": ["pin"]}}, "no classes for validation"),
        ({"01": {"train": ["lost"], "valid": [], "test": ["pin"]}}, "for validation"),
        ({"01": CLASSES | {"tset": ["fee"]}}, "Did you mean 'test'"),
        ({"01": CLASSES | {"test": "limit"}}, "expected a list of class names"),
        ({"01": ["lost"]}, "is a list"),
        ([], "holds a list; expected an object of folds"),
        ({}, "expected an object of folds"),
        ('{"01": {}, "01": {}}', r"\['01'\] stand more than once.* an object of folds: "),
    ],
)
def test_bad_folds_are_named(tmp_path, folds, message):
    write_own(tmp_path, folds=folds)
    if isinstance(folds, str):
        (tmp_path / "few_shot_folds.json").write_text(folds)
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        load_texts("own", tmp_path)
    assert "few_shot_folds.json" in str(caught.value)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data_dir was given"):
        load_texts("hwu64", None)
    with pytest.raises(FileNotFoundError, match=r"\(train.csv\): they are not together in"):
        load_texts("banking77", tmp_path)
    write_own(tmp_path)
    (tmp_path / "few_shot_folds.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"few_shot_folds.json is missing"):
        load_texts("own", tmp_path)
    with pytest.raises(ValueError, match="Did you mean 'banking77'"):
        load_texts("banking", tmp_path)
    with pytest.raises(ValueError, match="max_characters is 0"):
        load_texts("own", tmp_path, max_characters=0)
    with pytest.raises(TypeError, match="drop_repeated is 'no'; expected True or False"):
        load_texts("own", tmp_path, drop_repeated="no")
    with pytest.raises(ValueError, match=r"unknown texts \['own'\]; expected one of"):
        load_texts(["own"], tmp_path)
    (tmp_path / "full.jsonl").write_text("\n")
    write = tmp_path / "few_shot_folds.json"
    write.write_text(json.dumps({"01": CLASSES}))
    with pytest.raises(ValueError, match="the files hold no text"):
        load_texts("own", tmp_path)


def test_huge_files_are_refused(tmp_path, monkeypatch):
    write_own(tmp_path)
    monkeypatch.setattr(files, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="expected at most 100 bytes of texts"):
        load_texts("own", tmp_path)


COUNTS = {
    ("banking77", "01"): (25, 25, 27, 13_071),
    ("hwu64", "01"): (16, 23, 25, 11_033),
    ("liu54", "05"): (18, 18, 18, 25_449),
    ("huffpost41", "bao"): (20, 5, 16, 36_706),
    ("fewrel", "nyt"): (11, 5, 17, 12_899),
    ("fewrel", "pubmed"): (11, 5, 10, 12_199),
    ("fewrel", "wiki"): (6, 5, 5, 11_199),
}


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "fold"),
    [
        pytest.param(*key, marks=[pytest.mark.slow] * (key[1] in ("pubmed", "wiki")))
        for key in COUNTS
    ],
)
def test_the_sets_have_the_published_numbers(shared_dir, name, fold):
    if not (shared_dir / "data" / name).is_dir():
        pytest.skip(f"no {name}")
    found = load_texts(name, shared_dir / "data", fold=fold)
    parts = found.parts
    classes = tuple(part.num_classes for part in parts.values())
    texts = sum(len(part.texts) for part in parts.values())
    assert (*classes, texts) == COUNTS[name, fold]
    names = [name for part in parts.values() for name in part.class_names]
    assert len(set(names)) == len(names)
    # Enough for 5 shots and 15 queries of every class, once one of them is left out.
    assert min(np.bincount(part.labels).min() for part in parts.values()) >= 20
    assert set(sets.SETS) >= {name}
