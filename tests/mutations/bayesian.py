"""Wrong implementations of the learners of `metalearn.algorithms.bayesian`."""

from mutations import Mutation

HERE = "algorithms/bayesian"
SVGD, BMAML = f"{HERE}/test_svgd.py", f"{HERE}/test_bmaml.py"
LLAMA, PLATIPUS = f"{HERE}/test_llama.py", f"{HERE}/test_platipus.py"
CHANCES, OBJECTIVES = f"{HERE}/test_chances.py", f"{HERE}/test_objectives.py"

CHASER = f"{BMAML}::test_meta_gradient_is_that_of_a_leader_that_stands_still"
DIRECTION = f"{SVGD}::test_direction_is_that_of_the_definition"
LIKELIHOOD = f"{OBJECTIVES}::test_bmaml_descends_the_likelihood_it_names"
EACH = f"{BMAML}::test_emaml_is_maml_for_each_member"
NUMBERS = f"{OBJECTIVES}::test_emaml_of_numbers_averages_predictions_and_adds_losses"
EXACT = f"{LLAMA}::test_diagonal_and_head_are_those_of_the_exact_matrix"
CLOSED = f"{PLATIPUS}::test_means_and_divergence_have_their_closed_forms"
STARTS = f"{OBJECTIVES}::test_training_starts_from_the_posterior"


def _of(learner):
    return lambda file, old, new, test: Mutation(learner, f"{HERE}/{file}", old, new, test)


bmaml, emaml, llama, platipus = map(_of, ("bmaml", "emaml", "llama", "platipus"))

MUTATIONS = [
    # -- BMAML --------------------------------------------------------------------------
    # The leader moves with the chaser.
    bmaml("bmaml.py", "*jax.lax.stop_gradient(start),", "*start,", CHASER),
    # The leader sees what the chaser saw.
    bmaml("bmaml.py", "concatenate(task.support, task.query),", "task.support,", CHASER),
    # The leader takes one step.
    bmaml("bmaml.py", "num_steps=leader_steps,", "num_steps=1,", CHASER),
    # The chaser has no gradient.
    bmaml(
        "bmaml.py",
        'path.params["weights"],\n            led.params["weights"],',
        'jax.lax.stop_gradient(path.params["weights"]),\n'
        '            led.params["weights"],',
        CHASER,
    ),
    # Precisions count in the distance.
    bmaml(
        "bmaml.py",
        'path.params["weights"],\n            led.params["weights"],',
        "path.params,\n            led.params,",
        CHASER,
    ),
    # No bandwidth.
    bmaml(
        "svgd.py",
        "bandwidth = median_bandwidth(distances, floor=floor)",
        "bandwidth = 1.0",
        DIRECTION,
    ),
    # Particles attract one another.
    bmaml(
        "svgd.py",
        "(mixed(grad) - repulsion * apart)",
        "(mixed(grad) + repulsion * apart)",
        DIRECTION,
    ),
    # The initialisation learns the bandwidth.
    bmaml(
        "svgd.py",
        "return jax.lax.stop_gradient(jnp.maximum(",
        "return (jnp.maximum(",
        f"{SVGD}::test_no_derivative_through_the_bandwidth",
    ),
    # Queries one by one, or all together: the one for the other.
    bmaml("bmaml.py", '"query": query_loss,', '"query": joint,', f"{LIKELIHOOD}[query]"),
    bmaml(
        "bmaml.py",
        'return loss, {"joint/loss": loss}',
        'return done.report["query/loss"], {"joint/loss": loss}',
        f"{LIKELIHOOD}[joint]",
    ),
    # Padding counts as queries.
    bmaml(
        "bmaml.py",
        "num = jnp.maximum(jnp.sum(query.mask), 1).astype(each.dtype)",
        "num = jnp.asarray(query.mask.size, each.dtype)",
        f"{LIKELIHOOD}[joint]",
    ),
    # A prior of the wrong sign.
    bmaml(
        "posterior.py",
        "total -= 0.5 * prior * squares",
        "total += 0.5 * prior * squares",
        f"{BMAML}::test_one_particle_ascends_the_posterior",
    ),
    # Options that are ignored.
    bmaml(
        "bmaml.py",
        "mixing=svgd(repulsion=repulsion),",
        "mixing=svgd(),",
        f"{OBJECTIVES}::test_two_particles_part_as_far_as_bmaml_is_told",
    ),
    bmaml(
        "posterior.py",
        "math.log(prior.start), jnp",
        "0.0, jnp",
        f"{OBJECTIVES}::test_precisions_begin_where_their_priors_say",
    ),
    # One noise for all particles, or for all steps.
    bmaml(
        "ascent.py",
        "jax.random.split(key, there)",
        "jax.numpy.stack([key] * there)",
        f"{CHANCES}::test_particles_draw_from_keys_of_their_own",
    ),
    bmaml(
        "ascent.py",
        "key=fold_key(key, step),",
        "key=key,",
        f"{CHANCES}::test_particles_draw_anew_in_every_step",
    ),
    # -- EMAML --------------------------------------------------------------------------
    # The mean of the losses, so that a member learns M times as slowly.
    emaml("bmaml.py", "return jnp.sum(each(", "return jnp.mean(each(", EACH),
    # Members know of one another.
    emaml("bmaml.py", "mixing=optax.identity(),", "mixing=svgd(),", EACH),
    # A prior.
    emaml("bmaml.py", "weight_precision=0.0,", "weight_precision=1.0,", EACH),
    # The mean of the logits.
    emaml(
        "ensemble.py",
        "each = jax.nn.log_softmax(outputs, axis=-1)",
        "each = outputs",
        EACH,
    ),
    # The first member predicts.
    emaml("ensemble.py", "return jnp.mean(outputs, axis=0)", "return outputs[0]", NUMBERS),
    # All members start alike.
    emaml(
        "ascent.py",
        "model.init(k, x))(jax.random.split(key, num))",
        "model.init(k, x))(jax.numpy.stack([key] * num))",
        f"{CHANCES}::test_particles_start_from_keys_of_their_own",
    ),
    # -- LLAMA --------------------------------------------------------------------------
    # A determinant of the wrong sign, or twice.
    llama(
        "llama.py",
        "loss + 0.5 * eta * log_det",
        "loss - 0.5 * eta * log_det",
        f"{LLAMA}::test_meta_gradient_by_finite_differences[kronecker]",
    ),
    llama(
        "llama.py",
        "loss + 0.5 * eta * log_det",
        "loss + eta * log_det",
        f"{LLAMA}::test_meta_gradient_by_finite_differences[kronecker]",
    ),
    # The curvature of the queries.
    llama(
        "llama.py",
        "posterior(done.adapted, done.task.support).log_det",
        "posterior(done.adapted, done.task.query).log_det",
        EXACT,
    ),
    # The weight of the likelihood is ignored.
    llama("llama.py", "weight * hessian", "hessian", EXACT),
    # All samples are one.
    llama(
        "llama.py",
        "return jax.vmap(one)(jax.random.split(key, num))",
        "return jax.vmap(one)(jnp.stack([key] * num))",
        f"{LLAMA}::test_samples_of_evaluation",
    ),
    # All arrays get one noise.
    llama(
        "laplace.py",
        "keys = jax.random.split(key, len(blocks))",
        "keys = [key] * len(blocks)",
        f"{CHANCES}::test_draws_of_two_arrays_are_not_the_same[kronecker]",
    ),
    # Variances in place of deviations.
    llama(
        "laplace.py",
        "noise / jnp.sqrt(together(a, b))",
        "noise / together(a, b)",
        f"{CHANCES}::test_draws_of_two_arrays_are_not_the_same[kronecker]",
    ),
    # Factors without the trace.
    llama(
        "laplace.py",
        "outputs = outputs / jnp.where(trace > 0, trace, 1)",
        "outputs = outputs + 0 * trace",
        f"{LLAMA}::test_kronecker_keeps_partial_traces_and_exact_biases",
    ),
    # Padding has curvature.
    llama(
        "laplace.py",
        "return jnp.where(examples.mask[:, None, None], found, 0)",
        "return found",
        f"{CHANCES}::test_the_curvature_of_a_softmax_is_its_fisher_information"
        "_and_no_masked_row_has_any",
    ),
    # -- PLATIPUS -----------------------------------------------------------------------
    # KL(p | q).
    platipus(
        "platipus.py",
        "gaussian_kl(*posterior, *prior)",
        "gaussian_kl(*prior, *posterior)",
        CLOSED,
    ),
    # Training draws from the prior.
    platipus("platipus.py", "draw(k_draw, *posterior)", "draw(k_draw, *prior)", STARTS),
    # It draws with the variance of the prior.
    platipus(
        "platipus.py",
        "draw(k_draw, *posterior)",
        "draw(k_draw, posterior[0], prior[1])",
        STARTS,
    ),
    # The sample has no gradient.
    platipus(
        "platipus.py",
        "theta = draw(k_draw, *posterior)",
        "theta = jax.lax.stop_gradient(draw(k_draw, *posterior))",
        f"{PLATIPUS}::test_meta_gradient_by_finite_differences",
    ),
    # The posterior does not see the queries.
    platipus(
        "platipus.py",
        '("posterior", query, k_posterior)',
        '("posterior", support, k_posterior)',
        STARTS,
    ),
    # Training does not adapt to the support set.
    platipus(
        "platipus.py",
        "_adapt(parts, variables, theta, support, k_adapt, train=True)",
        "_adapt(parts, variables, theta, query, k_adapt, train=True)",
        STARTS,
    ),
    # The divergence weighs as if padding were queries.
    platipus(
        "platipus.py",
        "weight = 1 / jnp.maximum(jnp.sum(query.mask), 1).astype(kl.dtype)",
        "weight = 1 / query.mask.size",
        f"{OBJECTIVES}::test_weight_of_the_divergence_counts_valid_queries",
    ),
    # Evaluation draws with the variance of the posterior.
    platipus(
        "platipus.py",
        'draw(k_draw, mean, params["prior_log_variance"])',
        'draw(k_draw, mean, params["posterior_log_variance"])',
        CLOSED,
    ),
    # All samples are one.
    platipus(
        "platipus.py",
        "jax.random.split(k_draw, num_samples)",
        "jnp.stack([k_draw] * num_samples)",
        CLOSED,
    ),
    # Samples of another deviation than they are begun with.
    platipus(
        "platipus.py",
        "2 * math.log(std)",
        "math.log(std)",
        f"{OBJECTIVES}::test_platipus_begins_with_the_numbers_it_is_given",
    ),
    platipus(
        "gaussian.py",
        "jnp.exp(0.5 * s) * jax",
        "jnp.exp(s) * jax",
        f"{CHANCES}::test_draws_of_a_gaussian_scale_and_no_leaf_repeats_another",
    ),
    # One noise for all arrays.
    platipus(
        "gaussian.py",
        "list(jax.random.split(key, len(leaves)))",
        "[key] * len(leaves)",
        f"{CHANCES}::test_draws_of_a_gaussian_scale_and_no_leaf_repeats_another",
    ),
    # A divergence by the wrong variance.
    platipus(
        "gaussian.py",
        "jnp.square(m - n) * jnp.exp(-s)",
        "jnp.square(m - n) * jnp.exp(-v)",
        f"{PLATIPUS}::test_divergence_agrees_with_sampling",
    ),
]
