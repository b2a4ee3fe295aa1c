"""Wrong implementations of the learners of `metalearn.algorithms.context`."""

import functools

from mutations import Mutation

HERE = "algorithms/context"
CAVIA, FILM = f"{HERE}/test_cavia.py", f"{HERE}/test_film.py"
HSML, ENCODER = f"{HERE}/test_hsml.py", f"{HERE}/test_hsml_encoder.py"
LEO, DROPOUT = f"{HERE}/test_leo.py", f"{HERE}/test_leo_dropout.py"

NUMPY_FILM = f"{FILM}::test_film_of_any_context_is_that_of_numpy"
GATE = f"{ENCODER}::test_the_start_is_gated_by_the_embedding_and_the_root"
WHOLE = f"{ENCODER}::test_whole_outer_loss_by_finite_differences"
ENCODERS = f"{ENCODER}::test_encoders_are_those_of_numpy"
SITES = f"{DROPOUT}::test_features_are_dropped_wherever_they_are_read"
IDENTITY = f"{CAVIA}::test_identity_weights_are_maml_of_the_first_bias"

cavia, hsml, mumomaml, leo = (
    functools.partial(Mutation, name) for name in ("cavia", "hsml", "mumomaml", "leo")
)

MUTATIONS = [
    # -- CAVIA --------------------------------------------------------------------------
    # FiLM after the ReLU.
    cavia(
        "models/context.py",
        "x = gamma * x + beta\n            x = nn.relu(x)",
        "x = gamma * nn.relu(x) + beta\n            else:\n                x = nn.relu(x)",
        f"{NUMPY_FILM}[stride-4]",
    ),
    # FiLM without its offset.
    cavia(
        "models/context.py",
        "x = gamma * x + beta",
        "x = gamma * x",
        f"{NUMPY_FILM}[stride-4]",
    ),
    # Scale and offset change places.
    cavia(
        "models/context.py",
        "gamma, beta = jnp.split(",
        "beta, gamma = jnp.split(",
        f"{NUMPY_FILM}[stride-4]",
    ),
    # A task starts where the last one ended.
    cavia(
        f"{HERE}/cavia.py",
        "return Start(reset(shared))",
        "return Start(shared)",
        f"{CAVIA}::test_the_context_is_no_meta_parameter",
    ),
    # The sum over tasks is clipped.
    cavia(
        f"{HERE}/cavia.py",
        "clip_each(shared, support.mask[0], float(clip))",
        "clip_each(shared, jnp.ones(()), float(clip))",
        f"{CAVIA}::test_clips_each_task_before_the_mean",
    ),
    # The rate is ignored.
    cavia(
        f"{HERE}/cavia.py",
        "optax.sgd(rate),",
        "optax.sgd(1.0),",
        f"{CAVIA}::test_the_scale_of_the_context_is_free",
    ),
    # The number of steps is ignored.
    cavia(f"{HERE}/cavia.py", "num_steps=num_steps,", "num_steps=1,", IDENTITY),
    # Weights adapt as well.
    cavia(
        f"{HERE}/cavia.py",
        "adapt_filter=is_context,",
        "adapt_filter=None,",
        f"{CAVIA}::test_only_the_context_moves",
    ),
    # -- HSML ---------------------------------------------------------------------------
    # No reconstruction loss outside.
    hsml(
        f"{HERE}/hsml.py",
        "loss=reconstruction * loss,",
        "loss=0.0 * loss,",
        f"{WHOLE}[gru]",
    ),
    # The last state in place of the mean.
    hsml(
        "models/set_encoder.py",
        "return masked_mean(path, mask).astype(e.dtype), ",
        "return last, ",
        f"{ENCODERS}[gru]",
    ),
    # The mean of all states, padding included.
    hsml(
        "models/set_encoder.py",
        "return masked_mean(path, mask).astype(e.dtype), ",
        "return path.mean(0), ",
        f"{ENCODERS}[gru]",
    ),
    # A gate that ignores the embedding.
    hsml(
        f"{HERE}/hsml.py",
        "return jnp.concatenate([g, h]), ",
        "return jnp.concatenate([0 * g, h]), ",
        f"{GATE}[gru]",
    ),
    # A moving target of the reconstruction.
    hsml(
        "models/set_encoder.py",
        "rebuilt - jax.lax.stop_gradient(e)",
        "rebuilt - e",
        f"{WHOLE}[curves]",
    ),
    # Decoded from the first example on.
    hsml("models/set_encoder.py", ", mask, reverse=True)", ", mask)", f"{ENCODERS}[gru]"),
    # Codes of masked rows are pooled.
    hsml(
        "models/set_encoder.py",
        "pooled = masked_mean(codes, mask).astype(codes.dtype)",
        "pooled = codes.mean(0)",
        f"{ENCODERS}[mean]",
    ),
    # Leaves without their shares.
    hsml(
        f"{HERE}/clusters.py",
        "nodes = p[:, None] * jnp.tanh(",
        "nodes = jnp.tanh(",
        f"{HSML}::test_the_tree_by_hand",
    ),
    # A gate that is added.
    hsml(
        f"{HERE}/hsml.py",
        'jax.tree.map(jnp.multiply, params["model"], gate)',
        'jax.tree.map(jnp.add, params["model"], gate)',
        f"{GATE}[mean]",
    ),
    # Options that are ignored.
    hsml(
        f"{HERE}/hsml.py",
        "gate_init(k_gate, params, inputs, shape.gate_bias)",
        "gate_init(k_gate, params, inputs, 2.0)",
        f"{ENCODER}::test_mumomaml_is_hsml_without_a_tree",
    ),
    hsml(
        f"{HERE}/hsml.py",
        "sigma=shape.sigma)",
        "sigma=2.0)",
        f"{GATE}[gru]",
    ),
    # A new leaf resets the biases of the others.
    hsml(
        f"{HERE}/hsml.py",
        'leaves, *upper = structure["tree"]',
        'leaves, *upper = structure["tree"]\n'
        '    leaves = {**leaves, "b": jnp.zeros_like(leaves["b"])}',
        f"{ENCODER}::test_a_new_leaf_joins_and_changes_no_other",
    ),
    # -- MuMoMAML -----------------------------------------------------------------------
    # The gate does not see the task.
    mumomaml(
        f"{HERE}/hsml.py", "return g, Route(", "return 0 * g, Route(", f"{GATE}[mumomaml]"
    ),
    # Clusters after all.
    mumomaml(
        f"{HERE}/hsml.py",
        "        tree=(),\n",
        "        tree=(4, 2, 1),\n",
        f"{ENCODER}::test_mumomaml_is_hsml_without_a_tree",
    ),
    # An option is ignored.
    mumomaml(
        f"{HERE}/hsml.py",
        "reconstruction=reconstruction,",
        "reconstruction=0.01,",
        f"{WHOLE}[mumomaml]",
    ),
    # The gate is not bounded.
    mumomaml(
        f"{HERE}/clusters.py",
        "return jax.nn.sigmoid(jnp.tensordot(context.astype(w.dtype), w, 1) + b)",
        "return jnp.tensordot(context.astype(w.dtype), w, 1) + b",
        f"{GATE}[mumomaml]",
    ),
    # -- LEO ----------------------------------------------------------------------------
    # No dropout of what the encoder sees.
    leo(
        f"{HERE}/leo.py",
        "x = drop_features(k_encoder, support.x, dropout)",
        "x = support.x",
        f"{SITES}[steps0]",
    ),
    # None of what the steps see.
    leo(
        f"{HERE}/leo.py",
        "x = drop_features(key, support.x, dropout)",
        "x = support.x",
        f"{SITES}[steps0]",
    ),
    # None of the queries.
    leo(
        f"{HERE}/leo.py",
        "drop_features(k_query, query.x, dropout)",
        "query.x",
        f"{SITES}[steps0]",
    ),
    # Every step drops the same.
    leo(
        f"{HERE}/leo.py",
        "return support_loss(weights, fold_key(k_tune, 2 * step)), None",
        "return support_loss(weights, k_tune), None",
        f"{DROPOUT}::test_every_step_drops_other_features[fine_tune_rate]",
    ),
    leo(
        f"{HERE}/leo.py",
        "fold_key(k_latent, 2 * step + 1)",
        "fold_key(k_latent, 1)",
        f"{DROPOUT}::test_every_step_drops_other_features[latent_rate]",
    ),
    # Every decoding draws the same.
    leo(
        f"{HERE}/leo.py",
        "draw(fold_key(k_latent, 2 * step), made, offset)",
        "draw(k_latent, made, offset)",
        f"{DROPOUT}::test_every_decoding_draws_weights_anew",
    ),
    # What is kept is not scaled up.
    leo(
        f"{HERE}/leo_net.py",
        "jnp.where(kept, x / (1 - rate), 0)",
        "jnp.where(kept, x, 0)",
        f"{DROPOUT}::test_dropout_keeps_the_expectation",
    ),
    # A rate that is ignored.
    leo(
        f"{HERE}/leo.py",
        "float(latent_rate), x.dtype",
        "1.0, x.dtype",
        f"{DROPOUT}::test_rates_begin_where_they_are_told",
    ),
    # A divergence of the wrong sign.
    leo(
        f"{HERE}/leo_net.py",
        " - jnp.log(deviation)",
        " + jnp.log(deviation)",
        f"{LEO}::test_draws_have_the_deviation_and_the_divergence_they_should",
    ),
    # The divergence of absent classes counts.
    leo(
        f"{HERE}/leo.py",
        "masked_mean(kl, valid).mean()",
        "kl.mean()",
        f"{DROPOUT}::test_absent_classes_have_no_divergence",
    ),
    # The steps are pulled back to the encoder.
    leo(
        f"{HERE}/leo.py",
        "jax.lax.stop_gradient(path.params) - start",
        "path.params - start",
        f"{LEO}::test_penalty_pulls_the_encoder_to_where_the_steps_lead_and_not_the_steps",
    ),
    # Weights of the code before the steps.
    leo(
        f"{HERE}/leo.py",
        "weights = weights_of(path.params, how.num_steps)",
        "weights = weights_of(start, how.num_steps)",
        f"{LEO}::test_steps_on_codes_and_then_on_weights",
    ),
]
