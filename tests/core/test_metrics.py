"""The calibration error by hand, what it refuses, and the directions of metrics."""

import numpy as np
import pytest

from metalearn.core.metrics import calibration_error, higher_is_better


def test_by_hand():
    """A hit at 0.4 in the lower bin; hits at 0.9 and 1 and a miss at 0.8 above."""
    rows = [[0.4, 0.3, 0.3], [0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [1.0, 0.0, 0.0]]
    labels = [0, 0, 1, 0]
    assert calibration_error(rows, labels, num_bins=2) == pytest.approx((0.6 + 0.7) / 4)
    assert calibration_error(rows, labels, num_bins=1) == pytest.approx(0.1 / 4)
    assert calibration_error([[1.0, 0.0]] * 3, [0, 0, 0]) == 0


@pytest.mark.parametrize(
    ("labels", "bins", "message"),
    [
        ([0, 2], 15, r"from 0 to 2; expected class indices 0\.\.1"),
        ([0, -1], 15, "from -1 to 0; expected class indices"),
        ([0.0, 1.0], 15, "labels of dtype float64"),
        ([0], 15, r"labels \(1,\); expected \[P, W\] and \[P\]"),
        ([0, 1], 0, "num_bins is 0"),
        ([0, 1], 2.5, r"num_bins is 2\.5; expected an integer"),
        ([0, 1], True, "num_bins is True"),
    ],
)
def test_bad_labels_and_bins(labels, bins, message):
    with pytest.raises(ValueError, match=message):
        calibration_error([[0.5, 0.5]] * 2, labels, num_bins=bins)


def test_nothing_and_no_probabilities():
    with pytest.raises(ValueError, match="one prediction or more"):
        calibration_error(np.zeros((0, 2)), np.zeros(0, int))
    with pytest.raises(ValueError, match="no probabilities"):
        calibration_error([[2.0, -1.0]], [0])


def test_directions_are_known_by_the_last_part_of_a_name():
    assert higher_is_better("query/accuracy") and higher_is_better("accuracy")
    for name in (
        "query/loss",
        "loss",
        "validation/rmse",
        "query/multi_step_loss",
        "a/b/nll",
    ):
        assert not higher_is_better(name)


def test_what_is_said_goes_before_what_is_known():
    assert higher_is_better("query/loss", True) and not higher_is_better("accuracy", False)
    assert higher_is_better("score", np.bool_(True)) is True


@pytest.mark.parametrize(
    "name", ["query/score", "weightloss", "loss/query", "", "inaccuracy"]
)
def test_unknown_directions_are_not_guessed(name):
    """Names that only end with a known word are other names."""
    words = f"metric '{name}' is better is not known; known are accuracy.*higher_is_better="
    with pytest.raises(ValueError, match=words):
        higher_is_better(name)


@pytest.mark.parametrize("said", [0, "True", np.ones(1)])
def test_what_is_said_is_a_bool(said):
    with pytest.raises(ValueError, match="expected True, False or None"):
        higher_is_better("query/loss", said)
