"""Wrong versions of the learners that adapt to a domain without labels."""

from mutations import Mutation, of

BASE = "algorithms/joint/dann.py"
META = "algorithms/joint/meta_dann.py"
TESTS = "algorithms/joint/test_domain_adaptation.py"

MUTATIONS: list[Mutation] = [
    *of(
        "dann",
        # The features descend the loss of the discriminator.
        (
            BASE,
            "return -weight * cotangent",
            "return weight * cotangent",
            "test_features_ascend_what_the_discriminator_descends",
        ),
        # Every row counts the same, so that the larger side wins.
        (
            BASE,
            "return 0.5 * (sources + target)",
            "return 0.5 * (sources + (logits.shape[0] - num) * target)",
            "test_both_sides_count_the_same",
        ),
        # The weight is there at once.
        (
            BASE,
            "if not ramp_steps:",
            "if True:",
            "test_the_weight_grows_over_the_ramp",
        ),
        # Labels are learned that nobody gave.
        (
            BASE,
            "known = logits[:num]",
            "known = logits[-num:]",
            "test_without_a_weight_it_is_supervised_training",
        ),
        tests=TESTS,
    ),
    *of(
        "meta_dann",
        # The gradient at the start of the look-ahead.
        (
            META,
            "jax.grad(judged, has_aux=True)(moved, ",
            "jax.grad(judged, has_aux=True)(params, ",
            "test_the_meta_gradient_is_that_at_the_end_of_the_look_ahead",
        ),
        # First order whatever was asked.
        (
            META,
            "        if first_order:",
            "        if True:",
            "test_the_whole_derivative_goes_through_the_look_ahead",
        ),
        # The look-ahead has the labels of the held-out source as well.
        (
            META,
            "params, state, task.support, seen,",
            "params, state, concatenate(task.support, task.query), seen,",
            "test_the_meta_gradient_is_that_at_the_end_of_the_look_ahead",
        ),
        # Meta-steps alone.
        (
            META,
            "turn = step % (da_steps + 1) == 0",
            "turn = step >= 0",
            "test_meta_steps_take_turns_with_those_of_the_base_method",
        ),
        # The statistics of the look-ahead are kept.
        (
            META,
            "return grads, (state, report)",
            "return grads, (jax.tree.map(lambda s: s + 1, state), report)",
            "test_a_look_ahead_leaves_batch_statistics_and_ordinary_steps_move_them",
        ),
        tests=TESTS,
    ),
]
