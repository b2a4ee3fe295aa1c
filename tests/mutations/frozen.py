"""Wrong versions of the learners on frozen features."""

from mutations import Mutation, of

CENTROIDS = "algorithms/frozen/centroids.py"
BUILDER = "algorithms/frozen/builder.py"
COSINES = "algorithms/frozen/baseline_plus_plus.py"
PROBE = "algorithms/frozen/linear_probe.py"
META = "algorithms/frozen/meta_baseline.py"
TRANSDUCTIVE = "algorithms/frozen/transductive.py"
ADAPTERS = "algorithms/frozen/adapters.py"

MUTATIONS: list[Mutation] = [
    *of(
        "simple_shot",
        (
            CENTROIDS,
            'centred=transform == "CL2N",',
            "centred=False,",
            "test_simple_shot_is_the_nearest_mean_of_transformed_features[CL2N]",
        ),
        (
            CENTROIDS,
            'normalised=transform != "UN"',
            "normalised=True",
            "test_simple_shot_is_the_nearest_mean_of_transformed_features[UN]",
        ),
        (
            CENTROIDS,
            "return 2 * apart @ found.means.T",
            "return apart @ found.means.T",
            "test_simple_shot_is_the_nearest_mean_of_transformed_features[L2N]",
        ),
        # The common offset stays in the features.
        (
            CENTROIDS,
            "centre = masked_mean(x, mask)",
            "centre = 0 * masked_mean(x, mask)",
            "test_features_far_from_zero_keep_their_digits",
        ),
        tests="algorithms/frozen/test_centroids.py",
    ),
    *of(
        "nearest_centroid",
        (
            CENTROIDS,
            "return unit(class_means(support, num_ways))",
            "return unit(class_means(_with(support, unit(support.x)), num_ways))",
            "test_nearest_centroid_is_a_cosine_to_means_of_features_as_they_are",
        ),
        (
            CENTROIDS,
            "return factor * (unit(x) @ means.T)",
            "return factor * (x @ means.T)",
            "test_nearest_centroid_ignores_scale_and_is_the_nearest_neighbour_of_one_shot",
        ),
        (
            CENTROIDS,
            "cosine_head(num_ways, scale=scale),",
            "cosine_head(num_ways, scale=1.0),",
            "test_nearest_centroid_is_a_cosine_to_means_of_features_as_they_are",
        ),
        tests="algorithms/frozen/test_centroids.py",
    ),
    *of(
        "nearest_neighbours",
        # Masked rows are near.
        (
            CENTROIDS,
            "near = valid[None] & (apart <= furthest[:, None])",
            "near = apart <= furthest[:, None] + 10",
            "test_nearest_neighbours_vote_as_in_a_loop[cosine]",
        ),
        (
            CENTROIDS,
            "min(k, apart.shape[1]) - 1]",
            "min(k, apart.shape[1] - 1)]",
            "test_nearest_neighbours_vote_as_in_a_loop[euclidean]",
        ),
        (
            CENTROIDS,
            "return votes - 0.5 * length",
            "return votes + 0.5 * length",
            "test_ties_of_votes_go_to_the_nearer_class_and_of_places_to_all",
        ),
        # The queries are seen from elsewhere.
        (
            CENTROIDS,
            "x - found.centre[None])",
            "x)",
            "test_nearest_neighbours_vote_as_in_a_loop[euclidean]",
        ),
        tests="algorithms/frozen/test_centroids.py",
    ),
    *of(
        "baseline_plus_plus",
        (
            COSINES,
            "MOMENTUM * b + (1 - DAMPENING) * g",
            "MOMENTUM * b + g",
            "test_a_task_is_fitted_by_damped_momentum",
        ),
        (
            COSINES,
            "factor = scale or (2.0 if length.shape[0] <= 200 else 10.0)",
            "factor = scale or 10.0",
            "test_the_scale_is_two_for_up_to_two_hundred_classes",
        ),
        (
            COSINES,
            "return factor * (unit(x) @ unit(params",
            "return factor * (x @ unit(params",
            "test_the_scale_of_features_does_not_matter_and_the_key_does",
        ),
        (
            COSINES,
            "lambda g, w: g + weight_decay * w,",
            "lambda g, w: g,",
            "test_a_task_is_fitted_by_damped_momentum",
        ),
        tests="algorithms/frozen/test_baseline_plus_plus.py",
    ),
    *of(
        "linear_probe",
        # The bias is penalised too.
        (
            PROBE,
            "penalty, x.dtype).at[-1].set(0)",
            "penalty, x.dtype)",
            "test_probabilities_are_those_of_scikit_learn[True]",
        ),
        (
            PROBE,
            "_with_one(unit(support.x)), 0)",
            "_with_one(support.x), 0)",
            "test_probabilities_are_those_of_scikit_learn[True]",
        ),
        (
            PROBE,
            "return Probe(weights, jnp.sqrt(jnp.sum(jnp.square(gradient))))",
            "return Probe(weights, jnp.sum(jnp.square(gradient)))",
            "test_residual_is_the_length_of_the_gradient",
        ),
        tests="algorithms/frozen/test_linear_probe.py",
    ),
    *of(
        "meta_baseline",
        (
            META,
            '["step"] < pretrain_steps',
            '["step"] <= pretrain_steps',
            "test_each_stage_has_the_gradient_of_its_own_loss",
        ),
        (
            META,
            'jax.lax.select(first, report["joint/loss"], report["query/loss"])',
            'report["joint/loss"] + report["query/loss"]',
            "test_each_stage_has_the_gradient_of_its_own_loss",
        ),
        (
            META,
            "cosine_head(num_ways, scale=scale, learned=True)",
            "cosine_head(num_ways, scale=1.0, learned=True)",
            "test_a_task_is_classified_with_the_learned_scale",
        ),
        (
            META,
            "logits = mask_absent(head.score(params, means, done.query.x), present)",
            "logits = head.score(params, means, done.query.x)",
            "test_absent_classes_have_no_part_in_episodes",
        ),
        tests="algorithms/frozen/test_meta_baseline.py",
    ),
    *of(
        "transductive_fine_tune",
        (
            TRANSDUCTIVE,
            "support) + entropy_weight * unsure, None",
            "support) - entropy_weight * unsure, None",
            "test_steps_are_adam_on_support_loss_and_query_entropy",
        ),
        (
            TRANSDUCTIVE,
            "kernel = unit(class_means(rows, num_ways)).T",
            "kernel = class_means(rows, num_ways).T",
            "test_without_steps_the_support_means_classify",
        ),
        (
            TRANSDUCTIVE,
            "found = unit(features(network, both, valid))",
            "found = features(network, both, valid)",
            "test_without_steps_the_support_means_classify",
        ),
        tests="algorithms/frozen/test_transductive_fine_tune.py",
    ),
    *of(
        "tsa",
        # Adapters learn in meta-training.
        (
            ADAPTERS,
            "encoder = trees.merge(jax.lax.stop_gradient(adapters), rest)",
            "encoder = trees.merge(adapters, rest)",
            "test_meta_training_leaves_the_adapters_alone",
        ),
        (
            ADAPTERS,
            "return SCALE * (unit(x) @ centroids.T)",
            "return SCALE * (x @ centroids.T)",
            "test_without_steps_it_is_the_nearest_centroid_of_the_frozen_network",
        ),
        (
            ADAPTERS,
            'if adapts != "adapters":\n        parts["alignment"]',
            'if adapts == "both":\n        parts["alignment"]',
            "test_either_part_may_adapt_alone",
        ),
        # Queries meet the frozen network; centroids are those of it.
        (
            ADAPTERS,
            "embeddings = embed(adapted.variables, moved, x, mask)",
            "embeddings = embed(adapted.variables, {}, x, mask)",
            "test_steps_are_adadelta_with_a_rate_for_each_part",
        ),
        (
            ADAPTERS,
            "centroids=fit(moved)[1]",
            "centroids=fit(_start(variables, adapts, adapt_filter))[1]",
            "test_steps_are_adadelta_with_a_rate_for_each_part",
        ),
        tests="algorithms/frozen/test_task_adapters.py",
    ),
]
