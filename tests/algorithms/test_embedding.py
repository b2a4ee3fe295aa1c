"""What the builder of learners that embed does for every head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close
from tiny import WAYS, blob_batch, linen, one, plain

import metalearn as ml
from metalearn.algorithms.embedding import Head, class_means, embedded

KEY = jax.random.key(0)


def learner_of(head, encoder=None, **options):
    encoder = plain(4) if encoder is None else encoder
    return embedded("mine", encoder, head, num_ways=WAYS, settings={}, **options)


def nearest(**parts):
    fit = lambda params, support, *, key=None: class_means(support, WAYS)
    return Head(**{"fit": fit, "score": lambda params, means, x: x @ means.T, **parts})


def test_training_hands_the_head_a_key_of_each_step():
    """Without one a head that reads in a drawn order would learn the order it is given."""
    fit = lambda params, support, *, key=None: jax.random.normal(key, (WAYS,))
    head = nearest(fit=fit, score=lambda params, drawn, x: 0 * x[:, :1] + drawn[None])
    learner = learner_of(head)
    tasks = blob_batch()
    variables = learner.init(KEY, one(tasks))
    run = jax.jit(lambda key: learner.estimate(variables, tasks, key=key).metrics)
    first, second = (run(jax.random.key(i))["query/loss"] for i in (0, 1))
    assert (first != second).all() and len(set(first.tolist())) == len(first)


@pytest.mark.parametrize("norm", ["batch", "running"])
def test_training_embeds_as_tests_do(norm):
    """With statistics of each batch; with averages the batch is support and query."""
    learner = learner_of(nearest(), linen(None), norm=norm)
    tasks = blob_batch()
    # Queries of another kind, so that shared statistics are others.
    tasks = ml.Task(support=tasks.support, query=_shifted(tasks.query), info=tasks.info)
    variables = jax.jit(learner.init)(KEY, one(tasks))

    @jax.jit
    def both(tasks):
        trained = learner.estimate(variables, tasks, key=KEY).metrics["query/loss"]

        def tested(task):
            adapted = learner.adapt(variables, task.support)
            return ml.losses.cross_entropy(
                learner.predict(adapted, task.query.x), task.query
            )

        return trained, jax.vmap(tested)(tasks)

    trained, tested = both(tasks)
    assert np.allclose(trained, tested, atol=1e-5) == (norm == "batch")


def _shifted(examples):
    return ml.Examples(x=3 * examples.x + 5, y=examples.y, mask=examples.mask)


def test_a_task_without_a_valid_row_moves_no_average():
    learner, tasks = learner_of(nearest(), linen(None)), blob_batch()
    variables = jax.jit(learner.init)(KEY, one(tasks))
    part = lambda examples, where: ml.Examples(
        x=jnp.where(where, examples.x, 100.0),
        y=examples.y,
        mask=examples.mask & where[..., 0],
    )
    where = jnp.array([True, False, False])[:, None, None]
    cut = ml.Task(
        support=part(tasks.support, where), query=part(tasks.query, where), info=tasks.info
    )
    estimate = jax.jit(lambda tasks: learner.estimate(variables, tasks, key=KEY).state)
    found, whole = estimate(cut), estimate(jax.tree.map(lambda x: x[:1].repeat(3, 0), cut))
    for moved, alone, start in zip(*map(jax.tree.leaves, (found, whole, variables.state))):
        close(3 * (moved - start), alone - start, rtol=1e-5)


def test_labels_outside_make_any_loss_of_training_nan():
    """A loss of pairs, or of squares, would learn that the query is of no class."""
    loss = lambda params, fitted, support, query, logits, *, key: (jnp.sum(logits), {})
    learner, tasks = learner_of(nearest(loss=loss)), one(blob_batch())
    variables = learner.init(KEY, tasks)
    wrong = ml.Examples(
        x=tasks.query.x, y=tasks.query.y.at[0].set(WAYS), mask=tasks.query.mask
    )
    asked = ml.Task(support=tasks.support, query=wrong, info=tasks.info)
    shown = ml.Task(support=wrong, query=tasks.query, info=tasks.info)
    grads = jax.jit(lambda t: learner.estimate(variables, t, key=KEY).grads)
    assert all(
        np.isfinite(g).all() for g in jax.tree.leaves(grads(ml.stack_tasks([tasks] * 2)))
    )
    for bad in (asked, shown):
        found = jax.tree.leaves(grads(ml.stack_tasks([tasks, bad])))
        assert any(np.isnan(g).any() for g in found)


def test_labels_with_an_axis_too_many_are_refused():
    learner, task = learner_of(nearest()), one(blob_batch())
    variables = learner.init(KEY, task)
    support = ml.Examples(
        x=task.support.x, y=task.support.y[:, None], mask=task.support.mask
    )
    with pytest.raises(TypeError, match=r"are int32\[6, 1\]; expected class indices"):
        learner.adapt(variables, support)


@pytest.mark.parametrize("size", [1.0, 1e12, -1e12])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_absent_class_never_wins_whatever_the_logits(size, dtype):
    most = float(jnp.finfo(dtype).max) / 2
    logits = jnp.asarray(np.clip([[size, 2 * size, 0.0]], -most, most), dtype)
    present = jnp.array([True, True, False])
    masked = ml.losses.mask_absent(logits, present)
    assert np.isfinite(masked).all() and masked[0, 2] < masked[0, :2].min()
    close(masked[:, :2], logits[:, :2])


def test_noise_in_the_pass_of_batch_norm_is_refused_before_training():
    """And not by the first validation."""
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = False):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
            return nn.Dropout(0.5, deterministic=not train)(x)

    model = ml.from_linen(Net())
    model = ml.Model(model.init, model.apply)  # one flag for both
    learner = learner_of(nearest(), model, norm="batch")
    tasks = blob_batch()
    variables = learner.init(KEY, one(tasks))
    with pytest.raises(ValueError, match="norm='batch' normalises by the batch"):
        learner.estimate(variables, tasks, key=KEY)
