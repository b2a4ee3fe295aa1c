"""Wrong versions of learners that differ in the outer gradient."""

from mutations import Mutation, of

MUTATIONS: list[Mutation] = [
    *of(
        "imaml",
        (
            "algorithms/gradient/imaml.py",
            "lambda h, x: x + (h + damping * x) / lam,",
            "lambda h, x: x + h / lam + damping * x,",
            "test_meta_gradient_has_its_closed_form[0.7]",
        ),
        (
            "algorithms/gradient/imaml.py",
            "return 0.5 * lam * sum(jax.tree.leaves(squares))",
            "return lam * sum(jax.tree.leaves(squares))",
            "test_adaptation_finds_the_proximal_minimum_in_evaluation_too",
        ),
        (
            "algorithms/gradient/imaml.py",
            "jax.tree.map(lambda d, t: d - t / lam, direct, through)",
            "jax.tree.map(lambda d, t: d + t / lam, direct, through)",
            "test_meta_gradient_of_parameters_that_do_not_adapt",
        ),
        # The curvature of the start in place of that of the end.
        (
            "algorithms/gradient/imaml.py",
            "jax.linearize(lambda p: end.slope(p, fixed), phi)",
            "jax.linearize(lambda p: end.slope(p, fixed), end.theta)",
            "test_agrees_with_the_implicit_rule_of_unroll_and_with_its_path",
        ),
        # The one proximal step pushes away.
        (
            "algorithms/gradient/imaml.py",
            "inner_opt.update(_pull(lam, phi, theta), path.opt_state, phi)",
            "inner_opt.update(_pull(lam, theta, phi), path.opt_state, phi)",
            "test_pull_back_is_plain_descent_and_one_proximal_step",
        ),
        (
            "algorithms/gradient/imaml.py",
            "max_steps=cg_steps,",
            "max_steps=1,",
            "test_meta_gradient_has_its_closed_form[0.0]",
        ),
        tests="algorithms/gradient/test_imaml.py",
    ),
    *of(
        "bmg",
        # The target comes to meet the learner.
        (
            "algorithms/gradient/bmg.py",
            "learner, hparams, opt_state = jax.lax.stop_gradient(",
            "learner, hparams, opt_state = tuple(",
            "test_quadratic_has_its_closed_form[4]",
        ),
        (
            "algorithms/gradient/bmg.py",
            "num_steps=target_steps - 1,",
            "num_steps=target_steps,",
            "test_quadratic_has_its_closed_form[1]",
        ),
        (
            "algorithms/gradient/bmg.py",
            "begin, hparams, support, key=k_steps, train=True, opt_state=opt_state",
            "begin, hparams, support, key=k_steps, train=True, opt_state=None",
            "test_target_continues_the_inner_optimiser",
        ),
        # The divergence the other way round.
        (
            "algorithms/gradient/bmg.py",
            "p = jnp.exp(log_p)",
            "log_p, log_q = log_q, log_p\n    p = jnp.exp(log_p)",
            "test_divergence_is_of_the_target_from_the_learner",
        ),
        (
            "algorithms/gradient/bmg.py",
            "log_q = jax.nn.log_softmax(logits / temperature)",
            "log_q = jax.nn.log_softmax(logits)",
            "test_divergence_is_of_the_target_from_the_learner",
        ),
        # The last step of the target is one on the support set.
        (
            "algorithms/gradient/bmg.py",
            "return loss_fn(outputs, query)",
            "outputs, _ = done.predict(\n"
            "                settled(params), support.x, key=done.key, mask=support.mask\n"
            "            )\n"
            "            return loss_fn(outputs, support)",
            "test_quadratic_has_its_closed_form[1]",
        ),
        tests="algorithms/gradient/test_bmg.py",
    ),
    *of(
        "sharp_maml",
        # The perturbation is differentiated in the inner step.
        (
            "algorithms/gradient/sharp_maml.py",
            "(loss, aux), slope = jax.lax.stop_gradient((value, slope))",
            "loss, aux = jax.lax.stop_gradient(value)",
            "test_inner_perturbation_has_its_closed_form[3-False]",
        ),
        # Away from the worst place: the descent direction.
        (
            "algorithms/gradient/sharp_maml.py",
            "return jax.tree.map(lambda g: scale.astype(g.dtype) * g, grads)",
            "return jax.tree.map(lambda g: -scale.astype(g.dtype) * g, grads)",
            "test_perturbation_has_the_radius_and_zero_stays",
        ),
        # A norm for each array in place of one for all.
        (
            "algorithms/gradient/sharp_maml.py",
            "square = optax.tree.norm(grads, squared=True)",
            "if isinstance(grads, dict):\n"
            "        return {k: perturbation(g, radius) for k, g in grads.items()}\n"
            "    square = optax.tree.norm(grads, squared=True)",
            "test_perturbation_has_the_radius_and_zero_stays",
        ),
        # The outer gradient is that of the unperturbed place.
        (
            "algorithms/gradient/sharp_maml.py",
            "grads = there.grads",
            "grads = here.grads",
            "test_outer_perturbation_is_along_the_gradient_of_the_batch[0.0]",
        ),
        (
            "algorithms/gradient/sharp_maml.py",
            'there.metrics["query/loss"] - here.metrics["query/loss"]',
            'here.metrics["query/loss"] - there.metrics["query/loss"]',
            "test_outer_perturbation_is_along_the_gradient_of_the_batch[0.0]",
        ),
        # The outer radius inside.
        (
            "algorithms/gradient/sharp_maml.py",
            "return sharpened(loss, float(inner_radius), through=through_perturbation)",
            "return sharpened(loss, float(outer_radius), through=through_perturbation)",
            "test_adaptation_perturbs_in_evaluation_too",
        ),
        tests="algorithms/gradient/test_sharp_maml.py",
    ),
    *of(
        "es_maml",
        (
            "algorithms/gradient/evolution.py",
            "(values[:, 0] - values[:, 1]) / (2 * sigma * num)",
            "(values[:, 0] - values[:, 1]) / (sigma * num)",
            "test_step_function_has_the_slope_of_its_smoothing[0.0]",
        ),
        (
            "algorithms/gradient/evolution.py",
            "value(moved, k_value)",
            "value(moved, jax.random.fold_in(k_value, (sign > 0).astype(jnp.int32)))",
            "test_both_ends_of_a_pair_get_the_same_draws",
        ),
        (
            "algorithms/gradient/evolution.py",
            "better = values[best] < lowest",
            "better = values[best] < jnp.inf",
            "test_climbing_takes_the_best_of_a_round_and_avoids_nan",
        ),
        (
            "algorithms/gradient/evolution.py",
            "best = jnp.argmin(values)",
            "best = jnp.argmax(values)",
            "test_climbing_takes_the_best_of_a_round_and_avoids_nan",
        ),
        (
            "algorithms/gradient/es_maml.py",
            "keys = jax.random.split(k_pairs, num)",
            "keys = jax.random.split(jax.random.key(0), num)",
            "test_every_task_has_perturbations_of_its_own",
        ),
        # The loss in place of the objective.
        (
            "algorithms/gradient/es_maml.py",
            "value = as_scalar(criterion(outputs, query))",
            "value = as_scalar(loss_fn(outputs, query))",
            "test_step_function_has_the_slope_of_its_smoothing[0.0]",
        ),
        # The size of the values in place of their spread.
        (
            "algorithms/gradient/es_maml.py",
            "spread = jnp.std(values)",
            "spread = jnp.sqrt(jnp.mean(jnp.square(values)))",
            "test_spread_is_the_standard_deviation_of_all_values",
        ),
        # A search over all parameters, whatever was chosen.
        (
            "algorithms/gradient/search.py",
            "theta, fixed = trees.split(variables.params, adapt_filter)",
            "theta, fixed = trees.split(variables.params, None)",
            "test_a_search_moves_chosen_parameters_by_its_own_width",
        ),
        # The width of the search is that of the smoothing.
        (
            "algorithms/gradient/es_maml.py",
            "sigma=float(query_sigma))\n",
            "sigma=float(sigma))\n",
            "test_a_search_moves_chosen_parameters_by_its_own_width",
        ),
        tests="algorithms/gradient/test_es_maml.py",
    ),
]
