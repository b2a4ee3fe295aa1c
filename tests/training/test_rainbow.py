"""Rainbow MNIST: the tasks of the online benchmark."""

import gzip
import struct
from types import SimpleNamespace

import numpy as np
import pytest


def test_rainbow_tasks_share_no_digit_to_learn_from(tmp_path):
    from benchmarks import online as bench

    num = 56 * 4 + 30
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num, 28, 28), np.uint8)
    labels = (np.arange(num) % 10).astype(np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        path = tmp_path / f"t10k-{name}-ubyte.gz"
        path.write_bytes(gzip.compress(head + array.tobytes()))
    read, names = bench.read_mnist(tmp_path)
    assert np.array_equal(read, images) and np.array_equal(names, labels)
    codes = np.broadcast_to(np.arange(num)[:, None, None], images.shape)
    seen = SimpleNamespace(rows=[], looks=[])

    def dress(rows, *look):
        seen.rows.append(set(rows[:, 0, 0].tolist()))
        seen.looks.append(tuple(map(int, look)))
        return np.zeros((len(rows), 14, 14, 3), np.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "dress", dress)
        tasks = bench.rainbow(codes, labels.astype(np.int32), 4, 20, seed=1)
    own, held_out = seen.rows[::2], set.union(*seen.rows[1::2])
    assert len(tasks) == 56 and len(set(seen.looks)) == 56
    assert len(set.union(*own)) == 56 * 4 and not set.union(*own) & held_out
    with pytest.raises(ValueError, match="Take fewer"):
        bench.rainbow(images, labels, 5, 20, seed=1)
    with pytest.raises(FileNotFoundError, match="original files"):
        bench.read_mnist(tmp_path / "missing")


def test_digits_are_dressed():
    from benchmarks import online as bench

    image = np.zeros((1, 28, 28), np.uint8)
    image[0, :4, :4] = 255
    plain_red = bench.dress(image, 0, 0, 0)[0]
    assert plain_red.shape == (14, 14, 3)
    np.testing.assert_allclose(plain_red[:2, :2], 1.0)
    np.testing.assert_allclose(plain_red[5, 5], [1.0, 0.0, 0.0])
    small = bench.dress(image, 0, 1, 0)[0]
    assert np.argwhere(small[..., 1] > 0.5).tolist() == [[3, 3]]
    turned = bench.dress(image, 0, 0, 1)[0]
    np.testing.assert_allclose(turned, np.rot90(plain_red))
