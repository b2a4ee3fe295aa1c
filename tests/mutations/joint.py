"""Wrong versions of learners of one persistent model."""

from __future__ import annotations

from mutations import of

MUTATIONS = [
    *of(
        "l2rw",
        # Examples that harm the clean batch are those that count.
        (
            "algorithms/joint/l2rw.py",
            "normalised(-found.gradient, task.support.mask)",
            "normalised(found.gradient, task.support.mask)",
            "test_flipped_duplicates_of_clean_points_get_no_weight[flips0]",
        ),
        # Negative scores count by their size.
        (
            "algorithms/joint/l2rw.py",
            "normalised(-found.gradient, task.support.mask)",
            "normalised(jnp.abs(found.gradient), task.support.mask)",
            "test_without_a_helpful_example_the_step_is_zero",
        ),
        # Scores at weights of one in place of zero.
        (
            "algorithms/joint/l2rw.py",
            "jnp.zeros_like(each), rate=1.0",
            "jnp.ones_like(each), rate=1.0",
            "test_scores_are_the_slopes_of_the_clean_loss_along_each_step",
        ),
        # Plain training.
        (
            "algorithms/joint/l2rw.py",
            "(grads,) = found.pull(found.weights)",
            "(grads,) = found.pull(jnp.ones_like(found.weights))",
            "test_the_gradient_of_the_model_is_that_of_the_weighted_losses",
        ),
        # Masked rows of the noisy batch have losses.
        (
            "algorithms/joint/builder.py",
            "return jnp.where(examples.mask, jax.vmap(of_row)(*rows, one), 0)",
            "return jax.vmap(of_row)(*rows, one)",
            "test_a_masked_example_has_a_loss_of_zero",
        ),
        tests="algorithms/joint/test_l2rw.py",
    ),
    *of(
        "meta_weight_net",
        # The model steps with the weights of before.
        (
            "algorithms/joint/meta_weight_net.py",
            "weights = weigh(net, each)",
            'weights = weigh(variables.state["weights"], each)',
            "test_the_model_steps_with_the_weight_network_as_it_is_after_its_own_step",
        ),
        # A sum over the batch in place of a mean.
        (
            "algorithms/joint/meta_weight_net.py",
            "share = jnp.where(mask, 1 / jnp.maximum(jnp.sum(mask), 1), 0)",
            "share = jnp.where(mask, 1.0, 0.0)",
            "test_a_constant_weight_is_ordinary_training_at_another_rate",
        ),
        # Adam forgets its moments.
        (
            "algorithms/joint/meta_weight_net.py",
            '"moments": moments}',
            '"moments": opt.init(net)}',
            "test_the_weight_network_moves_by_adam_with_decay",
        ),
        # No decay.
        (
            "algorithms/joint/meta_weight_net.py",
            "optax.add_decayed_weights(weight_decay)",
            "optax.add_decayed_weights(0.0)",
            "test_the_weight_network_moves_by_adam_with_decay",
        ),
        # A virtual step of another length.
        (
            "algorithms/joint/meta_weight_net.py",
            "rate=rate, weigh=weigh",
            "rate=2 * rate, weigh=weigh",
            "test_the_gradient_of_the_weight_network_is_that_through_the_virtual_step",
        ),
        # Weights of the wrong end: large for what the network calls small.
        (
            "algorithms/joint/meta_weight_net.py",
            "jax.nn.sigmoid(linear(net",
            "jax.nn.sigmoid(-linear(net",
            "test_a_constant_weight_is_ordinary_training_at_another_rate",
        ),
        tests="algorithms/joint/test_meta_weight_net.py",
    ),
]
