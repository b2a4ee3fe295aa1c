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
        # The last layer reads the query's neighbours alone.
        (
            GNN,
            "_gathered(of_layer, nodes[-1:], nodes[:-1], shares)",
            "_gathered(of_layer, 0 * nodes[-1:], nodes[:-1], shares)",
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
        # Queries of a chunk come back in another order.
        (
            GNN,
            "reshape((-1, chunk, x.shape[-1]))",
            'reshape((-1, chunk, x.shape[-1]), order="F")',
            DEFINED,
        ),
        tests=f"{HERE}/test_gnn.py",
    ),
    *of(
        "attentive_recurrent_comparator",
        # The support example is looked at alone, or first.
        (
            ARC,
            'look(look(carry, queries, "q"), supports, "n")',
            'look(look(carry, supports, "n"), supports, "n")',
            f"{PAIRS}[False]",
        ),
        (
            ARC,
            'look(look(carry, queries, "q"), supports, "n")',
            'look(look(carry, supports, "n"), queries, "q")',
            f"{PAIRS}[False]",
        ),
        # Rows and columns change places.
        (
            ARC,
            "_filters(place[..., 1], place[..., 2], width,",
            "_filters(place[..., 0], place[..., 2], width,",
            f"{PAIRS}[False]",
        ),
        # Kernels of Gauss; weights of any sum; sizes of the image at all zooms.
        (
            ARC,
            "weights = 1 / (1 + jnp.square((pixels - points[..., None]) / width))",
            "weights = jnp.exp(-jnp.square((pixels - points[..., None]) / width))",
            "test_filters_are_cauchy_kernels_that_sum_to_one",
        ),
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
        # Sums over the examples of a class; masked ones count.
        (ARC, "members / counts[None])", "members + 0 * counts[None])", f"{PAIRS}[False]"),
        (
            ARC,
            "        members = jnp.where(support.mask[:, None], members, 0)\n",
            "",
            f"{PAIRS}[True]",
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
            'where = jax.lax.stop_gradient(carry[0])\n        place = jnp.tanh(linear(params["attention"], where))',
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
        # Attention over those who attend; without the root; without the residual.
        (
            FEAT,
            "jax.nn.softmax(scores, axis=-1)",
            "jax.nn.softmax(scores, axis=0)",
            f"{ATTEND}[euclidean]",
        ),
        (FEAT, ".T / rows.shape[-1] ** 0.5", ".T", f"{ATTEND}[euclidean]"),
        (FEAT, "rows + added)", "added)", f"{ATTEND}[euclidean]"),
        # Cosines of unnormalised prototypes.
        (
            FEAT,
            "return x @ centres.T * jax.lax.rsqrt(jnp.where(some, squares, 1))[None]",
            "return x @ centres.T + 0 * jnp.where(some, squares, 1)[None]",
            f"{ATTEND}[cosine]",
        ),
        # The auxiliary loss: attention beyond the class, its temperature, support alone.
        (
            FEAT,
            "among = (both.y[:, None] == both.y[None]) & both.mask[None]",
            "among = (both.y[:, None] == both.y[:, None]) & both.mask[None]",
            DEFINED,
        ),
        (FEAT, "metric) / auxiliary_temperature", "metric) / temperature", DEFINED),
        (
            FEAT,
            "both = concatenate(support, query)",
            "both = concatenate(support, support)",
            DEFINED,
        ),
        (FEAT, "+ auxiliary * apart", "+ apart", DEFINED),
        (
            FEAT,
            "centres = class_means(Examples(x=rows,",
            "centres = class_means(Examples(x=jax.lax.stop_gradient(rows),",
            DEFINED,
        ),
        # Dropout: nowhere among the classes, without its factor, one draw for all.
        (
            FEAT,
            "adapted(params, support, drop[:num_ways])",
            "adapted(params, support)",
            "test_dropout_is_of_training_and_moves_no_report",
        ),
        (
            FEAT,
            "return kept.astype(like.dtype) / (1 - rate)",
            "return kept.astype(like.dtype)",
            "test_rows_are_dropped_by_their_own_numbers",
        ),
        (
            FEAT,
            "SETS_APART * i + np.arange(size)",
            "np.arange(size)",
            "test_rows_are_dropped_by_their_own_numbers",
        ),
        tests=f"{HERE}/test_feat.py",
    ),
    *of(
        "frn",
        # The ridge: of all shots alike, of no size of the map, squared.
        (
            FRN,
            "ridges = members.sum(0) * (size / width)",
            "ridges = (1 + 0 * members.sum(0)) * (size / width)",
            f"{RESTS}[3]",
        ),
        (
            FRN,
            "members.sum(0) * (size / width)",
            "members.sum(0) * (1 / width)",
            f"{RESTS}[40]",
        ),
        # Rho scales the rest; it is left out of the other form.
        (
            FRN,
            "return (1 - rho) * eye + rho * ridges * _solve",
            "return rho * ridges * _solve",
            f"{RESTS}[3]",
        ),
        (
            FRN,
            "return eye - rho * _hats_of_rows(",
            "return eye - _hats_of_rows(",
            f"{RESTS}[40]",
        ),
        # Places of all classes in one system; masked ones count.
        (
            FRN,
            "gram = jnp.where(same, jnp.matmul(",
            "gram = jnp.where(same | True, jnp.matmul(",
            f"{RESTS}[40]",
        ),
        (
            FRN,
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
        # The auxiliary loss: a class meets itself; norms of their own; no gradient.
        (
            FRN,
            "pairs = jnp.sum(jnp.tril(products, -1))",
            "pairs = jnp.sum(jnp.tril(products))",
            f"{DEFINED}[3]",
        ),
        (
            FRN,
            "jnp.where(squares > 0, squares, 1) ** 2",
            "jnp.where(squares > 0, squares, 1)",
            f"{DEFINED}[3]",
        ),
        (
            FRN,
            "overlap = _overlap(_grams(rows, members))",
            "overlap = _overlap(_grams(jax.lax.stop_gradient(rows), members))",
            f"{DEFINED}[1]",
        ),
        # Derivatives of the system are forgotten.
        (
            FRN,
            "lambda solution: systems @ solution,",
            "lambda solution: jax.lax.stop_gradient(systems) @ solution,",
            f"{DEFINED}[1]",
        ),
        tests=f"{HERE}/test_frn.py",
    ),
]
