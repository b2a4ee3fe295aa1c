"""Wrong versions of the learners for domains that training has not seen."""

from mutations import Mutation, of

MLDG = "algorithms/joint/mldg.py"
REGULARISER = "algorithms/joint/metareg.py"
TESTS = "algorithms/joint/test_domain_generalisation.py"

MUTATIONS: list[Mutation] = [
    *of(
        "mldg",
        # A mean over domains in place of the sum.
        (
            MLDG,
            "return losses.sum(), state",
            "return losses.mean(), state",
            "test_without_the_held_out_domain_it_is_the_sum_over_the_others",
        ),
        # First order whatever was asked.
        (
            MLDG,
            "if first_order:",
            "if True:",
            "test_the_gradient_is_that_of_the_whole_objective",
        ),
        # The held-out loss before the virtual step.
        (
            MLDG,
            "network.loss(moved, state, task.query",
            "network.loss(params, state, task.query",
            "test_to_first_order_in_the_rate_it_rewards_gradients_that_agree",
        ),
        # The virtual step alone is judged.
        (
            MLDG,
            "return train + jnp.asarray(beta, test.dtype) * test",
            "return jnp.asarray(beta, test.dtype) * test",
            "test_without_a_virtual_step_it_is_a_weighted_sum",
        ),
        tests=TESTS,
    ),
    *of(
        "metareg",
        # Squares in place of absolute values.
        (
            REGULARISER,
            "jnp.sum(w * jnp.abs(p))",
            "jnp.sum(w * jnp.square(p))",
            "test_the_second_phase_has_the_weighted_absolute_values_of_the_head",
        ),
        # The head of the held-out domain in place of that of the drawn one.
        (
            REGULARISER,
            "_heads(heads, ids[place])",
            "_heads(heads, place)",
            "test_the_regulariser_descends_the_held_out_loss_after_steps_on_another_domain",
        ),
        # The regulariser moves on in the second phase.
        (
            REGULARISER,
            "jnp.where(step <= pretrain_steps, now, kept)",
            "now",
            "test_the_regulariser_is_kept_as_the_first_phase_left_it",
        ),
        # The held-out domain does not train the pilot.
        (
            REGULARISER,
            "return found.sum() + last, (outputs",
            "return found.sum(), (outputs",
            "test_the_first_phase_trains_a_body_on_all_domains_and_a_head_on_each",
        ),
        tests=TESTS,
    ),
]
