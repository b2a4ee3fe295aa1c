"""Files of stored features: changed bytes are noticed."""

import numpy as np
import pytest
from flips import cut, flipped

from metalearn.apps.images.features import PARTS, FewShotFeatures


def arrays():
    rng = np.random.default_rng(0)
    found = {part: rng.normal(size=(12, 5)).astype(np.float32) for part in PARTS}
    labels = {f"{part}_labels": np.repeat(np.arange(3), 4) for part in PARTS}
    return {**found, **labels}


@pytest.fixture(params=[np.savez, np.savez_compressed], ids=["plain", "compressed"])
def file(request, tmp_path):
    path = tmp_path / "features.npz"
    request.param(path, **arrays())
    return path


def outcome(path):
    """A message that names the file, or exactly what was stored."""
    try:
        found = FewShotFeatures().load(str(path))
    except ValueError as error:
        assert str(path) in str(error)
        return "noticed"
    stored = arrays()
    for part in PARTS:
        np.testing.assert_array_equal(found[part][0], stored[part], strict=True)
        np.testing.assert_array_equal(found[part][1], stored[f"{part}_labels"], strict=True)
    return "harmless"


def test_flipped_bits_are_noticed_or_harmless(file):
    found = [outcome(file) for _ in flipped([file], seed=0)]
    assert found.count("noticed") > 60 and outcome(file) == "harmless"


def test_cut_files_are_noticed(file):
    assert [outcome(file) for _ in cut([file])] == ["noticed"] * 3


def test_a_header_that_asks_for_fewer_numbers_is_noticed(tmp_path):
    """NumPy stops reading before the end of the member, where the checksum is compared."""
    path = tmp_path / "features.npz"
    wide = {k: np.resize(v, (600, 50)) if v.ndim == 2 else v for k, v in arrays().items()}
    np.savez(path, **wide)
    content = path.read_bytes()
    assert content.count(b"(600, 50)") == 3
    path.write_bytes(content.replace(b"(600, 50)", b"(600, 10)"))
    with np.load(path) as found:
        assert found["train"].shape == (600, 10)  # in silence
    with pytest.raises(ValueError, match=f"{path} cannot be read"):
        FewShotFeatures().load(str(path))


def test_other_labels_are_other_data():
    app, one = FewShotFeatures(), arrays()
    other = {**one, "train_labels": one["train_labels"][::-1]}
    described = [
        app.describe({p: (a[p], a[f"{p}_labels"]) for p in PARTS}) for a in (one, other)
    ]
    digests = [record["parts"]["train"]["sha256"] for record in described]
    assert digests[0] != digests[1]
    assert described[0]["parts"]["test"] == described[1]["parts"]["test"]
