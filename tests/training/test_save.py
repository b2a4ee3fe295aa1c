"""One file for variables: every bit comes back, and no wrong bit is taken."""

import collections
import errno
import hashlib
import json
import pickle
import re

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalearn as ml
from metalearn.core import files

LEARNER = ml.maml(
    ml.from_linen(ml.models.MLP(widths=(3,))), ml.losses.mse, optax.sgd(0.01), num_steps=2
)
Pair = collections.namedtuple("Pair", "left right")


def variables(**params):
    params = params or {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3)}
    return ml.Variables(params=params, state={})


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "learned.safetensors"
    ml.save(path, variables(), LEARNER)
    return path


def bits(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return str(leaf.dtype), np.shape(leaf), np.asarray(leaf).tobytes()


def same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert type(a) is type(b)
        assert a == b if isinstance(a, (bool, int, float)) else bits(a) == bits(b)


SPECIAL = np.array([np.nan, np.inf, -0.0, 1e-45], np.float32)
TREES = {
    "no parameter": {},
    "special floats": {"w": jnp.asarray(SPECIAL)},
    **{
        dtype: {"w": jnp.asarray([0, 1, 3], dtype)}
        for dtype in ("bfloat16", "float16", "int8", "uint8", "int32", "uint32", "bool")
    },
    "float8": {"w": jnp.asarray([0.5, 2], jnp.float8_e4m3fn)},
    "complex": {"w": jnp.asarray([1 + 2j], jnp.complex64)},
    "keys": {"k": jax.random.key(3), "many": jax.random.split(jax.random.key(1), 3)},
    "another key": {"k": jax.random.key(3, impl="rbg")},
    "empty": {"w": jnp.zeros((0, 3)), "d": {}, "l": [], "t": (), "n": None},
    "containers": {"l": [jnp.ones(1), (jnp.ones(2), {0: jnp.ones(3), 10: jnp.ones(1)})]},
    "named": {"p": Pair(jnp.ones(1), [jnp.zeros(1)])},
    "optax": {"o": optax.adam(1e-3).init({"w": jnp.ones(2)})},
    "frozen": {"f": flax.core.freeze({"w": jnp.ones(2)})},
    "one path twice": {"a/b": jnp.ones(1), "a": {"b": jnp.zeros(1)}},
    "odd names": {
        "": jnp.ones(1),
        'q"\\sha256': jnp.ones(1),
        "__metadata__": jnp.ones(1),
        "é": jnp.ones(1),
    },
    "numbers": {"i": 2**80, "f": float("inf"), "n": 0.1, "t": True},
    "numpy": {"d": np.array([0.1]), "big": np.arange(3, dtype=">f4").astype("<f4")},
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_everything_comes_back(tree, tmp_path):
    given = ml.Variables(params=tree, state={"s": tree})
    ml.save(tmp_path / "file", given, LEARNER)
    same(ml.load(tmp_path / "file", LEARNER), given)
    same(ml.load(str(tmp_path / "file")), given)


def test_a_loaded_learner_predicts_the_same(tmp_path):
    task = ml.tasks.sinusoid()(jax.random.key(0))
    given = LEARNER.init(jax.random.key(1), task)
    ml.save(tmp_path / "maml.safetensors", given, LEARNER)
    read = ml.load(tmp_path / "maml.safetensors", LEARNER)
    predict = jax.jit(
        lambda v: LEARNER.predict(LEARNER.adapt(v, task.support), task.query.x)
    )
    np.testing.assert_array_equal(predict(read), predict(given))


def test_the_file_is_a_safetensors_file(file):
    """Read by the published layout alone: length, JSON, arrays one after the other."""
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    assert length % 8 == 0 and set(header) == {"__metadata__", "params/w", "params/b"}
    assert all(isinstance(v, str) for v in header["__metadata__"].values())
    told = header["params/w"]
    begin, end = told["data_offsets"]
    found = np.frombuffer(whole[8 + length :][begin:end], "<f4").reshape(told["shape"])
    assert told["dtype"] == "F32"
    np.testing.assert_array_equal(found, np.arange(6.0).reshape(2, 3))
    ends = sorted(v["data_offsets"] for k, v in header.items() if k != "__metadata__")
    assert (
        ends[0][0] == 0
        and ends[0][1] == ends[1][0]
        and ends[1][1] == len(whole) - 8 - length
    )


def test_every_flipped_bit_is_noticed(file):
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    for place in [*range(64), *rng.integers(0, 8 * len(whole), 136)]:
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=re.escape(str(file))):
            ml.load(file, LEARNER)
    file.write_bytes(whole)
    ml.load(file, LEARNER)


@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b[:20], lambda b: b[8:]]
)
def test_cut_and_longer_files_are_refused(file, change):
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=r"learned\.safetensors"):
        ml.load(file)


OTHER_FILES = {
    "empty": (b"", "0 bytes"),
    "pickle": (pickle.dumps({"w": 1}), "a pickle, which is never read"),
    "zip": (b"PK\x03\x04" + bytes(30), "a zip archive"),
    "npy": (b"\x93NUMPY" + bytes(30), "a .npy file"),
    "json": (b'{"params": {"w": [1, 2, 3]}}', "JSON"),
    "zeros": (bytes(100), "no file of ml.save"),
    "safetensors of others": (
        (24).to_bytes(8, "little") + b'{"__metadata__":{}}     ' + bytes(9),
        "written by another program",
    ),
}


@pytest.mark.parametrize("content, words", OTHER_FILES.values(), ids=OTHER_FILES)
def test_other_files_are_refused_by_name(content, words, tmp_path):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        ml.load(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing does not exist"):
        ml.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        ml.load(tmp_path)


def forged(file, change=lambda text: text, **told):
    """The file with other words in its header, and a digest that fits them."""
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    inside = json.loads(header["__metadata__"]["metalearn"]) | told
    header["__metadata__"] = {"metalearn": change(json.dumps(inside)), "sha256": "0" * 64}
    text = json.dumps(header, separators=(",", ":")).encode()
    blank = len(text).to_bytes(8, "little") + text + whole[8 + length :]
    digest = hashlib.sha256(blank).hexdigest().encode()
    file.write_bytes(blank.replace(b"0" * 64, digest, 1))


EMPTY = ["dict", []]
FORGED = {
    "newer": ({"format": 99, "version": "9.0"}, "of metalearn 9.0"),
    "no tree": ({"tree": None}, "cannot be read"),
    "unknown container": ({"tree": ["exec", "1"]}, "unknown container 'exec'"),
    "not variables": ({"tree": EMPTY}, "holds a dict"),
    "missing array": ({"tree": ["variables", ["array", "params/x"], EMPTY]}, "params/x"),
    "code": (
        {"tree": ["variables", ["named", "os", "system", ["a"], [EMPTY]], EMPTY]},
        "os.system",
    ),
    "code not imported": (
        {"tree": ["variables", ["named", "antigravity", "T", ["a"], [EMPTY]], EMPTY]},
        "Import antigravity",
    ),
    "wrong kind": ({"tree": ["variables", 5, EMPTY]}, "cannot be read"),
    "key": ({"tree": ["variables", ["key", "params/w", "none"], EMPTY]}, "cannot be read"),
    "learner": ({"learner": []}, "lacks the learner"),
}


@pytest.mark.parametrize("told, words", FORGED.values(), ids=FORGED)
def test_forged_headers_are_refused(told, words, file):
    forged(file, **told)
    with pytest.raises(ValueError, match=re.escape(words)):
        ml.load(file)


def test_deep_nesting_is_no_crash(file):
    deep = EMPTY
    for _ in range(100):
        deep = ["list", [deep]]
    forged(file, tree=["variables", deep, EMPTY])
    ml.load(file)
    forged(
        file,
        tree="DEEP",
        change=lambda text: text.replace('"DEEP"', "[" * 9000 + "]" * 9000),
    )
    with pytest.raises(ValueError, match="cannot be read"):
        ml.load(file)


def test_another_learner_is_refused_with_every_difference(file):
    other = ml.fomaml(
        ml.from_linen(ml.models.MLP(widths=(3,))),
        ml.losses.mse,
        optax.sgd(0.01),
        num_steps=3,
    )
    with pytest.raises(ValueError, match=r"num_steps: saved 2, given 3") as caught:
        ml.load(file, other)
    assert "name: saved 'maml', given 'fomaml'" in str(caught.value)
    assert "ml.load(path)" in str(caught.value)
    same(ml.load(file), variables())


class Odd(dict):
    pass


BAD_PARAMS = {
    "subclass": ({"a": Odd(w=jnp.ones(1))}, "params/a is a test_save.Odd"),
    "key of a dictionary": ({(1, 2): jnp.ones(1)}, "the key (1, 2)"),
    "text": ({"a": {"b": "text"}}, "params/a/b is a builtins.str"),
    "function": ({"f": len}, "params/f is a builtins.builtin_function_or_method"),
    "objects": ({"o": np.array([None])}, "params/o has dtype object"),
    "wide complex": ({"c": np.array([1j])}, "params/c has dtype complex128"),
    "four bits": ({"q": jnp.asarray([1], jnp.int4)}, "params/q has dtype int4"),
    "hidden tuple": ({"h": collections.namedtuple("Lost", "a")(jnp.ones(1))}, "Lost"),
}


@pytest.mark.parametrize("params, words", BAD_PARAMS.values(), ids=BAD_PARAMS)
def test_what_a_file_cannot_say_is_named(params, words, tmp_path):
    with pytest.raises(TypeError, match=re.escape(words)):
        ml.save(tmp_path / "file", ml.Variables(params=params, state={}), LEARNER)
    assert not list(tmp_path.iterdir())


def test_traced_variables_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"params/w is traced"):
        jax.make_jaxpr(lambda w: ml.save(tmp_path / "f", variables(w=w), LEARNER))(1.0)


BAD_PATHS = {
    "empty": ("", TypeError, "expected the path of a file"),
    "dot": (".", ValueError, "path is '.'"),
    "NUL": ("a\0b", ValueError, "not text in UTF-8"),
    "no text": ("a\udcff", ValueError, "not text in UTF-8"),
    "URL": ("gs://bucket/maml", ValueError, "a URL; expected a path on a disk"),
    "device": ("/dev/null", ValueError, "a device or a pipe"),
    "bytes": (b"maml", TypeError, "b'maml'"),
}


@pytest.mark.parametrize("path, kind, words", BAD_PATHS.values(), ids=BAD_PATHS)
def test_what_is_no_path_of_a_file_is_refused(path, kind, words, tmp_path, monkeypatch):
    """A move in place of a device would remove it."""
    monkeypatch.chdir(tmp_path)
    for call in (lambda: ml.save(path, variables(), LEARNER), lambda: ml.load(path)):
        with pytest.raises(kind, match=re.escape(words)):
            call()
    assert not list(tmp_path.iterdir())


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to("folder/file")
    ml.save(link, variables(), LEARNER)
    assert link.is_symlink() and (tmp_path / "folder" / "file").is_file()
    same(ml.load(link), variables())


def test_a_name_may_be_as_long_as_names_can_be(tmp_path):
    path = tmp_path / ("x" * 255)
    ml.save(path, variables(), LEARNER)
    same(ml.load(path), variables())


def test_a_huge_file_is_refused_by_its_start(tmp_path, monkeypatch):
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(2**38)  # more than memory; no disk is used
    with pytest.raises(ValueError, match=r"\(\d+ bytes\) is no file of ml.save"):
        ml.load(path)


BAD_ARGUMENTS = {
    "result": (
        (
            "f",
            ml.FitResult(variables=variables(), state=None, history=[], best_step=0),
            LEARNER,
        ),
        "its variables: .variables",
    ),
    "params": (("f", {"w": 1}, LEARNER), "variables is a dict"),
    "order": ((variables(), "f", LEARNER), "path of a file first"),
    "trainer": (
        ("f", variables(), ml.meta_trainer(LEARNER, optax.sgd(1.0))),
        "learner is a MetaTrainer",
    ),
    "no learner": (("f", variables(), None), "learner is a NoneType"),
}


@pytest.mark.parametrize("arguments, words", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises(TypeError, match=re.escape(words)):
        ml.save(*arguments)


def test_a_failed_write_leaves_the_file_and_no_scratch(file, monkeypatch):
    before = file.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"bytes are needed\. Free space") as caught:
        ml.save(file, variables(), LEARNER)
    assert caught.value.errno == errno.ENOSPC and str(file) in str(caught.value)
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("rate", [float("inf"), -float("inf"), 0.1, 10**30])
def test_settings_of_any_size_are_stored(tmp_path, rate):
    learner = LEARNER._replace(config=(("name", "own"), ("sigma", rate)))
    ml.save(tmp_path / "f", variables(), learner)
    same(ml.load(tmp_path / "f", learner), variables())
    with pytest.raises(ValueError, match="sigma"):
        ml.load(tmp_path / "f", LEARNER._replace(config=(("name", "own"), ("sigma", 1))))


def test_double_precision_is_not_cut(tmp_path):
    with jax.enable_x64(True):
        wide = variables(w=jnp.asarray([0.1]))
        ml.save(tmp_path / "wide", wide, LEARNER)
        same(ml.load(tmp_path / "wide"), wide)
    with pytest.raises(ValueError, match="jax_enable_x64"):
        ml.load(tmp_path / "wide")
