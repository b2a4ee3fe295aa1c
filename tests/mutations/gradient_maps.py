"""Wrong versions of learners that shape inner gradients, or find outer ones otherwise."""

from mutations import Mutation, of

STARTS = (
    "algorithms/test_options.py::"
    "test_what_is_learned_for_inner_steps_starts_where_it_was_told"
)

MUTATIONS: list[Mutation] = [
    *of(
        "meta_curvature",
        (
            "algorithms/gradient/kronecker.py",
            '"inputs": "ji,tio->tjo"',
            '"inputs": "ij,tio->tjo"',
            "test_equals_explicit_kronecker_products",
        ),
        (
            "algorithms/gradient/kronecker.py",
            '"taps": "st,tio->sio"',
            '"taps": "ts,tio->sio"',
            "test_equals_explicit_kronecker_products",
        ),
        (
            "algorithms/gradient/meta_curvature.py",
            'curved_sgd(hparams["factors"], hparams.get("rate", rate))',
            'curved_sgd(hparams["factors"], rate)',
            "test_meta_gradients_match_an_explicit_step",
        ),
        (
            "algorithms/gradient/meta_curvature.py",
            'curved_sgd(hparams["factors"], hparams.get("rate", rate))',
            'curved_sgd(\n            jax.lax.stop_gradient(hparams["factors"]), '
            'hparams.get("rate", rate)\n        )',
            "test_identity_factors_are_maml",
        ),
        (
            "algorithms/gradient/kronecker.py",
            "return -jnp.asarray(rate, gradient.dtype) * transform(gradient, of)",
            "return -jnp.asarray(rate, gradient.dtype) * transform(\n"
            "            transform(gradient, of), of\n        )",
            "test_one_scaled_mode_scales_the_rate",
        ),
        tests="algorithms/gradient/test_meta_curvature.py",
    ),
    *of(
        "kfo",
        # The move is made with the factors of the step before.
        (
            "algorithms/gradient/kfo.py",
            "return move(phi, grads), KroneckerState(phi, grads)",
            "return move(state.factors, grads), KroneckerState(phi, grads)",
            "test_factors_descend_the_loss_of_the_step_they_made[False]",
        ),
        (
            "algorithms/gradient/kfo.py",
            "lambda f, s: f - rate * s, state.factors, slope",
            "lambda f, s: f + rate * s, state.factors, slope",
            "test_factors_descend_the_loss_of_the_step_they_made[False]",
        ),
        (
            "algorithms/gradient/kfo.py",
            "lambda factor: factor.T @ factor",
            "lambda factor: factor @ factor",
            "test_psd_maps_keep_the_angle_to_the_gradient_acute[dense]",
        ),
        # Adapted factors are forgotten after their step.
        (
            "algorithms/gradient/kfo.py",
            "return move(phi, grads), KroneckerState(phi, grads)",
            "return move(phi, grads), KroneckerState(state.factors, grads)",
            "test_factors_descend_the_loss_of_the_step_they_made[False]",
        ),
        # The gradient that the move is of is held.
        (
            "algorithms/gradient/kfo.py",
            "lambda phi: move(phi, state.gradient)",
            "lambda phi: move(phi, jax.lax.stop_gradient(state.gradient))",
            "test_meta_gradients_match_the_steps_by_hand[False]",
        ),
        tests="algorithms/gradient/test_kfo.py",
    ),
    *of(
        "t_net",
        # Biases do not adapt.
        (
            "algorithms/gradient/tnet.py",
            r'ADAPTED = r"(^|/)(TDense_\d+|TConv_\d+|head)/(kernel|bias)$"',
            r'ADAPTED = r"(^|/)(TDense_\d+|TConv_\d+|head)/(kernel)$"',
            "test_only_kernels_and_biases_move",
        ),
        (
            "models/tnet.py",
            "return (x @ kernel + bias[None]) @ transform",
            "return (x @ kernel + bias[None]) @ transform.T",
            "test_a_step_moves_the_composite_by_the_metric",
        ),
        (
            "models/tnet.py",
            "return (x @ kernel + bias[None]) @ transform",
            "return x @ kernel @ transform + bias[None]",
            "test_a_step_moves_the_composite_by_the_metric",
        ),
        (
            "models/tnet.py",
            "return x + (bias[None] @ transform)[:, None, None]",
            "return x + bias[None, None, None]",
            "test_tconv_is_a_convolution_and_a_1x1_convolution",
        ),
        # The matrix is not learned.
        (
            "models/tnet.py",
            "return (x @ kernel + bias[None]) @ transform",
            "return (x @ kernel + bias[None]) @ jax.lax.stop_gradient(transform)",
            "test_only_kernels_and_biases_move",
        ),
        tests="algorithms/gradient/test_tnet.py",
    ),
    *of(
        "mt_net",
        # Masked gradients in place of masked updates: weight decay moves what may not.
        (
            "algorithms/gradient/tnet.py",
            "lambda masks: optax.chain(inner_opt, masked(masks)),",
            "lambda masks: optax.chain(masked(masks), inner_opt),",
            "test_empty_masks_let_nothing_adapt[opt1]",
        ),
        # The soft draw in place of the hard one.
        (
            "algorithms/gradient/tnet.py",
            "return (noisy > 0).astype(zeta.dtype) + (soft - jax.lax.stop_gradient(soft))",
            "return soft",
            "test_draws_are_binary_with_the_slope_of_the_relaxed_draw",
        ),
        (
            "algorithms/gradient/tnet.py",
            "soft = jax.nn.sigmoid(noisy / temperature)",
            "soft = jax.nn.sigmoid(noisy)",
            "test_draws_are_binary_with_the_slope_of_the_relaxed_draw",
        ),
        (
            "algorithms/gradient/tnet.py",
            "zeta = jnp.full(leaf.shape[-1:], initial_logit, leaf.dtype)",
            "zeta = jnp.full(leaf.shape[-1:], 0.0, leaf.dtype)",
            f"{STARTS}[mt_net]",
        ),
        # The same draw for every task.
        (
            "algorithms/gradient/tnet.py",
            'masks = draw_masks(key, params["inner"], temperature)',
            'masks = draw_masks(jax.random.key(0), params["inner"], temperature)',
            "test_masks_differ_between_tasks_and_repeat_with_the_key",
        ),
        # No derivative: zeta is not learned.
        (
            "algorithms/gradient/tnet.py",
            "(soft - jax.lax.stop_gradient(soft))",
            "jax.lax.stop_gradient(soft - soft)",
            "test_masks_differ_between_tasks_and_repeat_with_the_key",
        ),
        (
            "algorithms/gradient/tnet.py",
            'masks = jax.tree.map(jax.nn.sigmoid, params["inner"])',
            "masks = jax.tree.map(\n"
            '                lambda z: (z > 0).astype(z.dtype), params["inner"]\n'
            "            )",
            "test_mean_masks_need_no_key",
        ),
        tests="algorithms/gradient/test_tnet.py",
    ),
    *of(
        "warpgrad",
        # A sum over the states in place of the mean.
        (
            "algorithms/gradient/warpgrad.py",
            "return loss / num_steps, aux",
            "return loss, aux",
            "test_closed_form_of_a_scalar",
        ),
        # The step itself is held, as if approximate.
        (
            "algorithms/gradient/warpgrad.py",
            'single=steps(1, "first_order" if approximate else "reverse"),',
            'single=steps(1, "first_order"),',
            "test_closed_form_of_a_scalar",
        ),
        (
            "algorithms/gradient/warpgrad.py",
            'single=steps(1, "first_order" if approximate else "reverse"),',
            'single=steps(1, "reverse"),',
            "test_omega_is_learned_through_single_steps[None-True]",
        ),
        # Every step starts the optimiser afresh.
        (
            "algorithms/gradient/warpgrad.py",
            "at.variables(), None, task.support, key=k_step, train=True, "
            "opt_state=opt_state",
            "at.variables(), None, task.support, key=k_step, train=True, opt_state=None",
            "test_omega_is_learned_through_single_steps[opt2-False]",
        ),
        # All states are the first one.
        (
            "algorithms/gradient/warpgrad.py",
            "return (end, opt_state, (of_theta, of_omega)), (report, state)",
            "return (theta, opt_state, (of_theta, of_omega)), (report, state)",
            "test_closed_form_of_a_scalar",
        ),
        # Leap without its stabiliser.
        (
            "algorithms/gradient/leap.py",
            "(jnp.abs(fall) * s + b) / size",
            "(fall * s + b) / size",
            "test_leap_shortens_the_path_with_its_losses",
        ),
        # theta_0 is learned by first order only.
        (
            "algorithms/gradient/warpgrad.py",
            "whole=steps(num_steps, differentiation),",
            'whole=steps(num_steps, "first_order"),',
            "test_closed_form_of_a_scalar",
        ),
        tests="algorithms/gradient/test_warpgrad.py",
    ),
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
