"""Wrong versions of the learners that compare an example with another, or with a class."""

from mutations import Mutation, of

MATCHING = "algorithms/metric/matching.py"
RELATION = "algorithms/metric/relation.py"
SIAMESE = "algorithms/metric/siamese.py"
MIXTURE = "algorithms/metric/mixture.py"

MUTATIONS: list[Mutation] = [
    *of(
        "matching_networks",
        # The mean cosine of a class, and not the sum of probabilities.
        (
            MATCHING,
            "return jax.nn.logsumexp(of_class, axis=-1)",
            "return jnp.max(of_class, axis=-1)",
            "test_probabilities_are_attention_that_is_summed_over_a_class",
        ),
        (
            "core/rows.py",
            "return rows * jax.lax.rsqrt(jnp.where(some, squares, 1))",
            "return rows",
            "test_probabilities_are_attention_that_is_summed_over_a_class",
        ),
        # Sums that lose far classes.
        (
            MATCHING,
            "return jax.nn.logsumexp(of_class, axis=-1)",
            "most = scores.max(-1, keepdims=True)\n"
            "    sums = jnp.exp(of_class - most[..., None]).sum(-1)\n"
            "    return most + jnp.log(sums + 1e-30)",
            "test_a_large_scale_is_the_nearest_neighbour_by_cosine",
        ),
        # The support set is held in training.
        (
            MATCHING,
            "return _Read(rows, members)",
            "return _Read(jax.lax.stop_gradient(rows), members)",
            "test_the_loss_is_that_of_the_mixture_and_teaches_encoder_and_scale",
        ),
        # The scale is learned in place of its logarithm.
        (
            MATCHING,
            'jnp.exp(params["log_scale"]) if learn_scale',
            'params["log_scale"] if learn_scale',
            "test_probabilities_are_attention_that_is_summed_over_a_class",
        ),
        # The state of the backward LSTM is that of the example at the other end.
        (
            MATCHING,
            "states[::-1, 1]",
            "states[:, 1]",
            "test_full_context_reads_the_valid_examples_in_order",
        ),
        (
            MATCHING,
            "jnp.where(valid[:, None], a, b), new, carry)",
            "a, new, carry)",
            "test_full_context_reads_the_valid_examples_in_order",
        ),
        (
            MATCHING,
            "jnp.zeros_like(read).at[order].set(jnp.where(valid[:, None], read, 0))",
            "jnp.where(valid[:, None], read, 0)[order]",
            "test_full_context_reads_the_valid_examples_in_order",
        ),
        # The query is not added to the state that reads.
        (
            MATCHING,
            "return (h + x, c), None",
            "return (h, c), None",
            "test_cells_without_weights_add_no_context",
        ),
        (
            MATCHING,
            "jnp.concatenate([x, attention @ read.rows], -1)",
            "jnp.concatenate([attention @ read.rows, x], -1)",
            "test_without_a_key_full_context_keeps_the_order_and_learns_all_its_cells",
        ),
        (
            "models/cells.py",
            "i, f, g, o = jnp.split",
            "i, g, f, o = jnp.split",
            "test_full_context_reads_the_valid_examples_in_order",
        ),
        (
            "models/cells.py",
            "jnp.concatenate([zeros, ones, zeros, zeros])",
            "jnp.concatenate([zeros, zeros, zeros, zeros])",
            "test_a_new_cell_remembers_and_each_gate_turns_the_state",
        ),
        tests="algorithms/metric/test_matching.py",
    ),
    *of(
        "relation_network",
        (
            RELATION,
            'if pool == "sum":',
            'if pool == "mean":',
            "test_equal_shots_change_the_sum_and_not_the_mean[mean]",
        ),
        # The query before the class.
        (
            RELATION,
            "of_classes = _convolved(classes, first",
            "classes, queries = classes + 0, queries + 0\n"
            '    first = {**first, "kernel": jnp.roll(first["kernel"], channels, -2)}\n'
            "    of_classes = _convolved(classes, first",
            "test_maps_are_compared_as_in_the_paper_and_the_loss_is_squared",
        ),
        # Pairs are normalised together.
        (
            RELATION,
            "axes = tuple(range(1, x.ndim))",
            "axes = tuple(range(x.ndim - 1))",
            "test_maps_are_compared_as_in_the_paper_and_the_loss_is_squared",
        ),
        # Cross-entropy in place of squares.
        (
            RELATION,
            "head = Head(fit=fit, score=score, init=init, loss=loss)",
            "def entropy(*args, **options):\n"
            "        from metalearn.core.losses import cross_entropy\n\n"
            "        return cross_entropy(args[4], args[3]), loss(*args, **options)[1]\n\n"
            "    head = Head(fit=fit, score=score, init=init, loss=entropy)",
            "test_maps_are_compared_as_in_the_paper_and_the_loss_is_squared",
        ),
        # Absent classes count in the mean.
        (
            RELATION,
            "query.mask[:, None] & classes.present[None]",
            "query.mask[:, None] & jnp.ones_like(classes.present)[None]",
            "test_the_loss_of_one_half_everywhere_is_a_quarter",
        ),
        (
            RELATION,
            "jnp.square(jax.nn.sigmoid(logits) - wanted)",
            "jnp.square(logits - wanted)",
            "test_the_loss_of_one_half_everywhere_is_a_quarter",
        ),
        (
            RELATION,
            '"bias": jnp.ones((outputs,), like.dtype)',
            '"bias": jnp.zeros((outputs,), like.dtype)',
            "test_a_new_relation_module_is_drawn_as_in_the_released_code",
        ),
        tests="algorithms/metric/test_relation.py",
    ),
    *of(
        "siamese_network",
        # A distance of squares.
        (
            SIAMESE,
            "apart = jnp.abs(first[:, None] - second[None])",
            "apart = jnp.square(first[:, None] - second[None])",
            "test_with_weights_of_minus_one_the_nearest_neighbour_in_l1_wins",
        ),
        # All pairs weigh the same, so that those of two classes rule.
        (
            SIAMESE,
            "value = (same + different) / 2",
            "value = _mean(jax.nn.softplus(jnp.where(alike, -z, z)), pairs)",
            "test_the_loss_weighs_pairs_of_one_class_and_of_two_alike",
        ),
        # An example is a pair with itself.
        (
            SIAMESE,
            "mask[:, None] & mask[None] & ~jnp.eye(mask.shape[0], dtype=bool)",
            "mask[:, None] & mask[None]",
            "test_the_loss_weighs_pairs_of_one_class_and_of_two_alike",
        ),
        # Pairs of support examples with queries alone.
        (
            SIAMESE,
            "pairs = mask[:, None] & mask[None] &",
            "half = jnp.arange(mask.shape[0]) < support.mask.shape[0]\n"
            "        mask, pairs = mask, half[:, None] != half[None]\n"
            "        pairs &= mask[:, None] & mask[None] &",
            "test_the_loss_weighs_pairs_of_one_class_and_of_two_alike",
        ),
        (
            SIAMESE,
            'params["weights"][None, None], -1) + params["bias"]',
            'params["weights"][None, None], -1)',
            "test_probability_is_symmetric_and_that_of_an_example_with_itself_is_the_bias",
        ),
        # The sum over shots.
        (
            "algorithms/embedding.py",
            "return members / jnp.maximum(members.sum(0), 1)[None]",
            "return members",
            "test_the_logit_of_a_class_is_the_mean_over_its_shots",
        ),
        (
            SIAMESE,
            "jnp.full((size,), -1 / size, like.dtype)",
            "jnp.full((size,), 1 / size, like.dtype)",
            "test_a_new_learner_is_that_nearest_neighbour",
        ),
        tests="algorithms/metric/test_siamese.py",
    ),
    *of(
        "infinite_mixture_prototypes",
        # Examples are compared with the mean of their class alone.
        (
            MIXTURE,
            "set(valid & far & ~near)",
            "set(valid & far | valid & far & near)",
            "test_examples_far_from_all_clusters_of_their_class_open_one",
        ),
        (
            MIXTURE,
            "- 2 * math.log(alpha))",
            "- math.log(alpha))",
            "test_which_clusters_are_opened_depends_on_the_order",
        ),
        (
            MIXTURE,
            "(size * jnp.log1p",
            "(jnp.log1p",
            "test_which_clusters_are_opened_depends_on_the_order",
        ),
        # The spread divides by the number of classes.
        (
            MIXTURE,
            "squares.sum(0)) / jnp.maximum(count - 1, 1)",
            "squares.sum(0)) / count",
            "test_which_clusters_are_opened_depends_on_the_order",
        ),
        # Examples of other classes have a share.
        (
            MIXTURE,
            "alike & opened[None]",
            "jnp.broadcast_to(opened[None], alike.shape)",
            "test_examples_far_from_all_clusters_of_their_class_open_one",
        ),
        # Every example belongs to its nearest cluster alone.
        (
            MIXTURE,
            "-squares / (2 * variance)",
            "-1e9 * squares",
            "test_shares_and_threshold_are_held_in_training",
        ),
        # Shares are differentiated.
        (
            MIXTURE,
            "held = jax.lax.stop_gradient(support.x)",
            "held = support.x",
            "test_shares_and_threshold_are_held_in_training",
        ),
        (
            MIXTURE,
            'jnp.exp(jax.lax.stop_gradient(params["log_sigma"]))',
            'jnp.exp(params["log_sigma"])',
            "test_shares_and_threshold_are_held_in_training",
        ),
        # Centres are held in training.
        (
            MIXTURE,
            "centres = shares.T @ support.x",
            "centres = shares.T @ held",
            "test_shares_and_threshold_are_held_in_training",
        ),
        (
            MIXTURE,
            "near = -apart / (2 * ",
            "near = -apart / (",
            "test_without_new_clusters_it_is_protonet_with_half_the_precision_as_scale",
        ),
        # A sum over the clusters of a class.
        (
            MIXTURE,
            "return jnp.max(jnp.where(members.T[None], near[:, None], out), -1)",
            "return jax.nn.logsumexp(jnp.where(members.T[None], near[:, None], out), -1)",
            "test_shares_and_threshold_are_held_in_training",
        ),
        (
            MIXTURE,
            "jnp.maximum(count - 1, 1)",
            "(count - 1)",
            "test_one_class_alone_has_no_spread",
        ),
        tests="algorithms/metric/test_infinite_mixtures.py",
    ),
]
