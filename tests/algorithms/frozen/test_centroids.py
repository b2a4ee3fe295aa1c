"""SimpleShot, Classifier-Baseline and nearest neighbours in closed form, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, wide_blobs
from frozen_tasks import SIZES, arrays, as_they_are, lengths, logits_of, ragged, variables
from tiny import WAYS, one

import metalearn as ml
from metalearn.algorithms import frozen
from metalearn.algorithms.frozen.centroids import euclidean_head, neighbour_head

pytestmark = pytest.mark.usefixtures("x64")
MEAN = np.array([0.3, -0.2, 1.0, 0.1])


def make(name, **options):
    return getattr(frozen, name)(as_they_are(), **SIZES, **options)


def moved(task, change):
    """A task whose inputs are changed."""
    parts = [
        ml.Examples(x=change(part.x), y=part.y, mask=part.mask)
        for part in (task.support, task.query)
    ]
    return ml.Task(support=parts[0], query=parts[1], info=task.info)


def relative(logits):
    """Logits up to a constant of each row."""
    return logits - logits.mean(-1, keepdims=True)


@pytest.mark.parametrize("transform", ["UN", "L2N", "CL2N"])
def test_simple_shot_is_the_nearest_mean_of_transformed_features(transform):
    """The mean of what is of length one is not normalised again."""
    task = one(ragged())
    x, y, queries = arrays(task)
    if transform == "CL2N":
        x, queries = x - MEAN, queries - MEAN
    if transform != "UN":
        x, queries = x / lengths(x), queries / lengths(queries)
    means = np.stack([x[y == k].mean(0) for k in range(WAYS)])
    expected = -((queries[:, None] - means) ** 2).sum(-1)
    learner = make("simple_shot", transform=transform)
    found = logits_of(learner, task, variables(mean=MEAN))
    close(relative(found), relative(expected))


def test_simple_shot_ignores_a_shift_of_features_and_of_their_mean():
    learner, task, shift = make("simple_shot"), one(wide_blobs()), np.arange(4.0)
    first = logits_of(learner, task, variables(mean=MEAN))
    other = logits_of(
        learner, moved(task, lambda x: x + shift[None]), variables(mean=MEAN + shift)
    )
    close(relative(first), relative(other))


def test_nearest_centroid_is_a_cosine_to_means_of_features_as_they_are():
    task = one(ragged())
    x, y, queries = arrays(task)
    means = np.stack([x[y == k].mean(0) for k in range(WAYS)])
    cosines = (queries / lengths(queries)) @ (means / lengths(means)).T
    close(logits_of(make("nearest_centroid", scale=7.0), task), 7 * cosines)
    # The mean feature is for SimpleShot alone.
    found = logits_of(make("nearest_centroid"), task, variables(mean=MEAN))
    close(found, 10 * cosines)


def test_nearest_centroid_ignores_scale_and_is_the_nearest_neighbour_of_one_shot():
    task = one(wide_blobs())
    cut = jax.tree.map(lambda leaf: leaf[np.array([0, 2, 4])], task.support)
    task = ml.Task(support=cut, query=task.query)
    found = logits_of(make("nearest_centroid"), task)
    close(logits_of(make("nearest_centroid"), moved(task, lambda x: 5 * x)), found)
    neighbour = logits_of(make("nearest_neighbours"), task)
    assert (found.argmax(-1) == neighbour.argmax(-1)).all()


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_nearest_neighbours_vote_as_in_a_loop(distance):
    task = one(ragged())
    x, y, queries = arrays(task)
    found = logits_of(make("nearest_neighbours", k=4, distance=distance), task)
    for query, logits in zip(queries, found):
        apart = np.linalg.norm(x - query, axis=-1)
        if distance == "cosine":
            apart = 1 - x @ query / (np.linalg.norm(x, axis=-1) * np.linalg.norm(query))
        near = np.argsort(apart)[:4]
        votes = np.bincount(y[near], minlength=WAYS)
        sums = np.bincount(y[near], weights=apart[near], minlength=WAYS)
        close(logits, votes - 0.5 * sums / sums.sum())
        best = votes == votes.max()
        assert logits.argmax() == np.where(best, sums, np.inf).argmin()


def scores(x, y, queries, *, k, mask=None):
    head = neighbour_head(3, k=k, distance="euclidean")
    support = ml.Examples.of(jnp.asarray(x), jnp.asarray(y), mask)
    return np.asarray(head.score({}, head.fit({}, support), jnp.asarray(queries)))


def test_ties_of_votes_go_to_the_nearer_class_and_of_places_to_all():
    x, y = np.array([[0.0], [1.0], [4.0]]), np.array([2, 0, 1])
    found = scores(x, y, np.array([[0.4], [0.6], [0.0]]), k=2)
    assert found.argmax(-1).tolist() == [2, 0, 2]
    # Two examples at the same distance: both vote, in whatever order they stand.
    both = scores(x[:2], y[:2], np.array([[0.5]]), k=1)
    close(both, np.array([[0.75, 0, 0.75]]))
    # More neighbours than valid examples: all of these vote, and no masked one.
    mask = jnp.array([True, True, False])
    found = scores(x, y, np.array([[0.25]]), k=9, mask=mask)
    close(found, np.array([[1 - 0.5 * 0.75, 0, 1 - 0.5 * 0.25]]))


def test_features_far_from_zero_keep_their_digits():
    """In float32, at an offset of a thousand times what tells them apart."""
    rng = np.random.default_rng(0)
    rows = (100 + 0.1 * rng.normal(size=(10, 4))).astype(np.float32)
    y, heads = (
        np.arange(6) % 3,
        (
            neighbour_head(3, k=2, distance="euclidean"),
            euclidean_head(3, normalised=False),
        ),
    )

    def both(rows):
        support = ml.Examples.of(rows[:6], jnp.asarray(y))
        return [head.score({}, head.fit({}, support), rows[6:]) for head in heads]

    votes, logits = jax.jit(both)(rows)
    assert votes.dtype == logits.dtype == jnp.float32
    x, queries = np.float64(rows[:6]), np.float64(rows[6:])
    apart = np.linalg.norm(queries[:, None] - x[None], axis=-1)
    for row, found in zip(apart, votes):
        near = np.argsort(row)[:2]
        sums = np.bincount(y[near], weights=row[near], minlength=3)
        expected = np.bincount(y[near], minlength=3) - 0.5 * sums / sums.sum()
        close(found, expected, rtol=1e-4)
    means = np.stack([x[y == k].mean(0) for k in range(3)])
    far = -((queries[:, None] - means[None]) ** 2).sum(-1)
    close(relative(np.asarray(logits)), relative(far), rtol=1e-3)


def test_a_query_that_is_a_support_example_has_a_finite_derivative():
    head = neighbour_head(2, k=1, distance="euclidean")
    support = ml.Examples.of(jnp.zeros((1, 2)), jnp.array([0]))
    score = lambda x: head.score({}, head.fit({}, support), x)[0, 0]
    assert np.isfinite(jax.grad(score)(jnp.zeros((1, 2)))).all()


def test_options_are_checked():
    with pytest.raises(ValueError, match="transform is 'L2'; expected one of UN, L2N"):
        make("simple_shot", transform="L2")
    with pytest.raises(ValueError, match="k is 0; expected an integer of 1 or more"):
        make("nearest_neighbours", k=0)
    with pytest.raises(ValueError, match="scale is 0; expected a finite number above 0"):
        make("nearest_centroid", scale=0)
