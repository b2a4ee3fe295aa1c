"""Wrong versions of learners that compare sets, maps and graphs of examples."""

from mutations import Mutation, of

HERE = "algorithms/metric"
GNN, ARC, FEAT, FRN = (f"{HERE}/{name}.py" for name in ("gnn", "arc", "feat", "frn"))

GRAPHS = "test_logits_are_those_of_a_graph_for_each_query"
DEFINED = "test_loss_and_derivatives_are_those_of_the_definition"
PAIRS = "test_logits_are_those_of_a_loop_over_pairs"
ATTEND = "test_prototypes_of_a_task_attend_to_one_another"
RESTS = "test_logits_are_the_rests_of_ridge_regressions"

MUTATIONS: list[Mutation] = [
    *of(
        "few_shot_gnn",
        # A node attends to itself.
        (
            GNN,
            "others = valid[None] & ~jnp.eye(nodes.shape[0], dtype=bool)",
            "others = jnp.broadcast_to(valid[None], edges.shape)",
            GRAPHS,
        ),
        # Masked nodes are attended to: in layers, and by the query at the end.
        (
            GNN,
            "valid = jnp.concatenate([graph.valid, jnp.ones((1,), bool)])",
            "valid = jnp.ones((graph.valid.shape[0] + 1,), bool)",
            GRAPHS,
        ),
        (
            GNN,
            "shares = _shares(edges, graph.valid[None])",
            "shares = _shares(edges, jnp.ones_like(graph.valid[None]))",
            GRAPHS,
        ),
        # The softmax is over those who attend.
        (GNN, "jax.nn.softmax(edges, axis=-1)", "jax.nn.softmax(edges, axis=0)", GRAPHS),
        # Signed distances, which depend on the order of a pair.
        (
            GNN,
            "pairs = _edge(params, jnp.abs(first - second))",
            "pairs = _edge(params, first - second)",
            GRAPHS,
        ),
        # No norm between an edge's layers.
        (
            GNN,
            "jax.nn.leaky_relu(_normed(layer, linear(layer, apart)))",
            "jax.nn.leaky_relu(linear(layer, apart))",
            GRAPHS,
        ),
        # Edges of the first layer are not learned.
        (
            GNN,
            'return _Graph(nodes, support.mask, _edges(params["layer_0"], nodes))',
            'edges = jax.lax.stop_gradient(_edges(params["layer_0"], nodes))\n'
            "        return _Graph(nodes, support.mask, edges)",
            DEFINED,
        ),
        tests=f"{HERE}/test_gnn.py",
    ),
    *of(
        "attentive_recurrent_comparator",
        # The query is never looked at.
        (
            ARC,
            'look(look(carry, queries, "q"), supports, "n")',
            'look(look(carry, supports, "n"), supports, "n")',
            f"{PAIRS}[False]",
        ),
        # Rows and columns change places.
        (
            ARC,
            "_filters(place[..., 1], place[..., 2], width,",
            "_filters(place[..., 0], place[..., 2], width,",
            f"{PAIRS}[False]",
        ),
        # Weights of any sum; points as far apart at all zooms.
        (
            ARC,
            "return weights / weights.sum(-1, keepdims=True)",
            "return weights / (jnp.pi * width)",
            "test_filters_are_cauchy_kernels_that_sum_to_one",
        ),
        (
            ARC,
            "stride = size / num * (1 - jnp.abs(zoom))",
            "stride = size / num * jnp.ones_like(zoom)",
            "test_a_glimpse_as_large_as_the_image_samples_all_of_it",
        ),
        # Sums over the examples of a class.
        (
            "algorithms/embedding.py",
            "return members / jnp.maximum(members.sum(0), 1)[None]",
            "return members",
            f"{PAIRS}[False]",
        ),
        # An absent class is read as well; both LSTMs read forwards.
        (
            ARC,
            "lambda a, b: jnp.where(valid, a, b), new, carry)",
            "lambda a, b: jnp.where(valid | True, a, b), new, carry)",
            f"{PAIRS}[True]",
        ),
        (
            ARC,
            'reading(params["backward"], True)',
            'reading(params["backward"], False)',
            f"{PAIRS}[True]",
        ),
        # Nothing is learned of where to look.
        (
            ARC,
            'place = jnp.tanh(linear(params["attention"], carry[0]))',
            "where = jax.lax.stop_gradient(carry[0])\n"
            '        place = jnp.tanh(linear(params["attention"], where))',
            DEFINED,
        ),
        tests=f"{HERE}/test_arc.py",
    ),
    *of(
        "feat",
        # Absent classes attract attention.
        (
            FEAT,
            "scores = jnp.where(among, scores, jnp.finfo(scores.dtype).min)",
            "scores = scores + 0 * among",
            f"{ATTEND}[euclidean]",
        ),
        # Without the root of D.
        (FEAT, ".T / rows.shape[-1] ** 0.5", ".T", f"{ATTEND}[euclidean]"),
        # Cosines of unnormalised prototypes.
        (
            FEAT,
            "return x @ unit(centres).T",
            "return x @ centres.T",
            f"{ATTEND}[cosine]",
        ),
        # The auxiliary loss: attention beyond the class, support alone, constant centres.
        (
            FEAT,
            "among = (both.y[:, None] == both.y[None]) & both.mask[None]",
            "among = (both.y[:, None] == both.y[:, None]) & both.mask[None]",
            DEFINED,
        ),
        (
            FEAT,
            "both, drop = concatenate(support, query), None",
            "both, drop = concatenate(support, support), None",
            DEFINED,
        ),
        (
            FEAT,
            "centres = class_means(Examples(x=rows,",
            "centres = class_means(Examples(x=jax.lax.stop_gradient(rows),",
            DEFINED,
        ),
        # Dropout: nowhere among the classes, without its factor.
        (
            FEAT,
            "adapted(params, support, drop[:num_ways])",
            "adapted(params, support)",
            "test_dropout_is_of_training_and_moves_no_report",
        ),
        # All that leaves the block is dropped, or all classes alike.
        (
            FEAT,
            "added = added * drop",
            "rows, added = rows * drop, added * drop",
            "test_dropout_is_of_training_and_moves_no_report",
        ),
        (
            FEAT,
            "added = added * drop",
            "added = added * drop[:1]",
            "test_dropout_is_of_training_and_moves_no_report",
        ),
        (
            FEAT,
            "return kept.astype(like.dtype) / (1 - rate)",
            "return kept.astype(like.dtype)",
            "test_rows_are_dropped_by_their_own_numbers",
        ),
        tests=f"{HERE}/test_feat.py",
    ),
    *of(
        "frn",
        # The ridge of one shot for all.
        (
            FRN,
            "ridges = members.sum(0) * (size / width)",
            "ridges = (1 + 0 * members.sum(0)) * (size / width)",
            f"{RESTS}[3]",
        ),
        # What rho takes away is left out.
        (
            FRN,
            "return (1 - rho) * eye + rho * ridges * solve",
            "return rho * ridges * solve",
            f"{RESTS}[3]",
        ),
        # Places of all classes in one system; masked ones count.
        (
            FRN,
            "gram = jnp.where(same, jnp.matmul(",
            "gram = jnp.where(same | True, jnp.matmul(",
            f"{RESTS}[40]",
        ),
        (
            "algorithms/embedding.py",
            "return jnp.where(support.mask[:, None], members, 0)",
            "return members",
            f"{RESTS}[3]",
        ),
        # A sum over the places of a query.
        (
            FRN,
            "jnp.mean(jnp.sum(jnp.square(apart), -1), -1)",
            "jnp.sum(jnp.square(apart), (-2, -1))",
            f"{RESTS}[3]",
        ),
        # In the auxiliary loss a class meets itself.
        (
            FRN,
            "pairs = jnp.sum(jnp.tril(products, -1))",
            "pairs = jnp.sum(jnp.tril(products))",
            f"{DEFINED}[3]",
        ),
        # Derivatives of the system are forgotten.
        (
            "inner/solve.py",
            "lambda solution: matrix @ solution,",
            "lambda solution: jax.lax.stop_gradient(matrix) @ solution,",
            f"{DEFINED}[1]",
        ),
        tests=f"{HERE}/test_frn.py",
    ),
]
