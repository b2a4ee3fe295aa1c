"""Wrong versions of learners of inner rates."""

from mutations import Mutation, of

STARTS = (
    "algorithms/test_options.py::"
    "test_what_is_learned_for_inner_steps_starts_where_it_was_told"
)

MUTATIONS: list[Mutation] = [
    *of(
        "meta_sgd",
        (
            "algorithms/gradient/maml.py",
            "lambda a, g: -a * g, rates, grads",
            "lambda a, g: a * g, rates, grads",
            "test_meta_sgd_on_quadratics",
        ),
        (
            "algorithms/gradient/maml.py",
            "lambda a, g: -a * g, rates, grads",
            "lambda a, g: -jnp.mean(a) * g, rates, grads",
            "test_meta_sgd_on_quadratics",
        ),
        (
            "algorithms/gradient/maml.py",
            "lambda a, g: -a * g, rates, grads",
            "lambda a, g: -jax.lax.stop_gradient(a) * g, rates, grads",
            "test_meta_sgd_on_quadratics",
        ),
        (
            "algorithms/gradient/maml.py",
            "jnp.full_like(p, initial_rate), params",
            "jnp.full_like(p, 0.1), params",
            f"{STARTS}[meta_sgd]",
        ),
        # Rates that cannot become negative.
        (
            "algorithms/gradient/maml.py",
            "lambda a, g: -a * g, rates, grads",
            "lambda a, g: -jnp.abs(a) * g, rates, grads",
            "algorithms/gradient/test_maml.py::test_meta_sgd_rates_may_be_negative",
        ),
        (
            "algorithms/gradient/maml.py",
            "jax.random.uniform(k, p.shape, p.dtype, low, high)",
            "jax.random.uniform(k, p.shape, p.dtype, 0.0, high)",
            "test_meta_sgd_draws_rates_from_its_range",
        ),
        (
            "algorithms/gradient/maml.py",
            "jax.random.uniform(k, p.shape, p.dtype, low, high)",
            "jax.random.uniform(key, p.shape, p.dtype, low, high)",
            "algorithms/gradient/test_maml.py::test_meta_sgd_draws_other_rates_for_other_arrays",
        ),
        tests="algorithms/test_numerics.py",
    ),
    *of(
        "maml_plus_plus",
        (
            "algorithms/gradient/maml_plus_plus.py",
            "early = jnp.maximum(1 - t, LEAST) / num_steps",
            "early = jnp.maximum(1 - t, LEAST / num_steps) / num_steps",
            "test_weights_follow_the_formula",
        ),
        (
            "algorithms/gradient/maml_plus_plus.py",
            "jax.vmap(after)(jnp.arange(1, num_steps, dtype=jnp.int32))",
            "jax.vmap(after)(jnp.arange(0, num_steps - 1, dtype=jnp.int32))",
            "test_multi_step_loss_has_its_closed_form[30]",
        ),
        (
            "algorithms/gradient/maml_plus_plus.py",
            "return jnp.sum(weights[:-1] * losses)",
            "return jax.lax.stop_gradient(jnp.sum(weights[:-1] * losses))",
            "test_multi_step_loss_has_its_closed_form[30]",
        ),
        (
            "algorithms/gradient/maml_plus_plus.py",
            "jax.tree.map(lambda r, g: -r[count] * g,",
            "jax.tree.map(lambda r, g: -r[0] * g,",
            "test_rate_of_each_step_has_its_closed_form",
        ),
        (
            "algorithms/gradient/maml_plus_plus.py",
            "return trees.merge(of_norm, moves), count + 1",
            "return trees.merge(of_norm, moves), count",
            "test_rate_of_each_step_has_its_closed_form",
        ),
        # Weights of norms are added to the first ones, not put in their place.
        (
            "algorithms/gradient/maml_plus_plus.py",
            "jax.tree.map(jnp.subtract, next_norm, of_norm)",
            "next_norm",
            "test_norm_weights_stand_for_the_pass_after_their_step",
        ),
        # All query losses with the statistics of the last step.
        (
            "algorithms/gradient/maml_plus_plus.py",
            'if norm == "support" and jax.tree.leaves(adapted.state):',
            'if norm == "never" and jax.tree.leaves(adapted.state):',
            "test_multi_step_loss_predicts_as_learners_of_fewer_steps",
        ),
        # The order changes one outer step too late.
        (
            "algorithms/bilevel.py",
            'variables.state["step"] < loop.hooks.first_order_until',
            'variables.state["step"] <= loop.hooks.first_order_until',
            "test_order_changes_the_gradient_and_not_the_loss",
        ),
        # All passes with the averages of the first; queries with those before the last.
        (
            "inner/norm.py",
            "state = jax.tree.map(lambda s: s[step], state)",
            "state = jax.tree.map(lambda s: s[0], state)",
            "test_every_pass_of_evaluation_reads_the_averages_of_its_step",
        ),
        (
            "inner/norm.py",
            "return jax.tree.map(lambda s: s[num_steps], state)",
            "return jax.tree.map(lambda s: s[num_steps - 1], state)",
            "test_every_pass_of_evaluation_reads_the_averages_of_its_step",
        ),
        (
            "algorithms/gradient/maml_plus_plus.py",
            "rate = initial_rate if learned_rates else None",
            "rate = 0.1 if learned_rates else None",
            f"{STARTS}[maml_plus_plus]",
        ),
        tests="algorithms/gradient/test_maml_plus_plus.py",
    ),
    *of(
        "alpha_maml",
        (
            "algorithms/gradient/alpha_maml.py",
            "rate = state.rate + hyper_rate * along",
            "rate = state.rate - hyper_rate * along",
            "test_hypergradient_of_the_outer_rate_by_finite_differences",
        ),
        # beta moves after it was applied.
        (
            "algorithms/gradient/alpha_maml.py",
            "lambda u: -rate.astype(u.dtype) * u, direction",
            "lambda u: -state.rate.astype(u.dtype) * u, direction",
            "test_outer_rate_is_updated_before_it_is_applied",
        ),
        # h is that of the gradient, not of the direction that was taken.
        (
            "algorithms/gradient/alpha_maml.py",
            "HypergradientState(rate, direction, inner_state)",
            "HypergradientState(rate, grads, inner_state)",
            "test_outer_rate_is_updated_before_it_is_applied",
        ),
        (
            "algorithms/gradient/alpha_maml.py",
            "lambda s, a: a * jnp.expm1(-rate * s)",
            "lambda s, a: a * jnp.expm1(rate * s)",
            "test_multiplicative_inner_rate_follows_the_latest_slopes",
        ),
        (
            "algorithms/gradient/alpha_maml.py",
            "optax.scale_by_adam(b1=0.0, b2=0.9, eps=1e-12)",
            "optax.scale_by_adam(b1=0.0, b2=0.999, eps=1e-12)",
            "test_multiplicative_inner_rate_follows_the_latest_slopes",
        ),
        # The rate starts elsewhere.
        (
            "algorithms/gradient/alpha_maml.py",
            "hooks = Hooks(inner_hparams=rate,",
            "hooks = Hooks(inner_hparams=0.01,",
            f"{STARTS}[alpha_maml]",
        ),
        tests="algorithms/gradient/test_alpha_maml.py",
    ),
]
