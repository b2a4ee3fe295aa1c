"""Graphs: propagation by dense formulas, subgraphs, splits, and what is refused."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from own_graph import own_graph, write_own_graph

from metalearn.core import cost
from metalearn.data import graphs


@pytest.fixture(scope="module")
def graph():
    return graphs.graph_of(*own_graph())


def _dense(graph):
    """`D^-1/2 (A + I) D^-1/2` by dense matrices."""
    matrix = np.eye(len(graph))
    for u, v in graph.edges:
        matrix[u, v] = matrix[v, u] = 1
    half = np.diag(matrix.sum(1) ** -0.5)
    return half @ matrix @ half


def test_propagation_is_the_dense_formula(graph):
    matrix, x = graphs.adjacency(graph.edges, len(graph)), graph.features
    dense = _dense(graph)
    for hops in (0, 1, 2):
        found = graphs.propagated(matrix, x, hops)
        expected = np.linalg.matrix_power(dense, hops) @ x
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        assert found.dtype == np.float32
    # The last node has no link and keeps its features.
    assert graph.info["isolated"] >= 1
    np.testing.assert_allclose(graphs.propagated(matrix, x, 2)[-1], x[-1], rtol=1e-6)


def test_features_of_half_the_width_are_numbers(graph):
    matrix, x = graphs.adjacency(graph.edges, len(graph)), graph.features
    found = graphs.propagated(matrix, x.astype(jnp.bfloat16), 1)
    assert found.dtype == jnp.bfloat16
    expected = graphs.propagated(matrix, x, 1)
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=0.1, atol=0.1)
    with pytest.raises(TypeError, match="expected an array of numbers"):
        graphs.propagated(matrix, x.astype(complex), 1)


def test_columns_are_multiplied_in_parts(graph):
    wide = np.random.default_rng(0).normal(size=(len(graph), 600)).astype(np.float32)
    found = graphs.propagated(graphs.adjacency(graph.edges, len(graph)), wide, 1)
    np.testing.assert_allclose(found, _dense(graph) @ wide, rtol=1e-4, atol=1e-5)


def test_without_links_nothing_spreads():
    x, _, labels = own_graph()
    graph = graphs.graph_of(x, np.zeros((0, 2), int), labels)
    matrix = graphs.adjacency(graph.edges, len(graph))
    np.testing.assert_array_equal(graphs.propagated(matrix, x, 2), x)
    of_floats = graphs.adjacency(np.zeros((0, 2)), len(graph))  # as NumPy makes them
    np.testing.assert_array_equal(of_floats.values, matrix.values)
    around = graphs.subgraphs(graph, hops=2, size=4)
    assert (around.links.sum((1, 2)) == 1).all() and (around.links[:, 0, 0] == 1).all()


def test_other_numbers_of_the_nodes_give_the_same_rows(graph):
    order = np.random.default_rng(1).permutation(len(graph))
    place = np.argsort(order)
    moved = graphs.graph_of(graph.features[order], place[graph.edges], graph.labels[order])
    matrices = [graphs.adjacency(g.edges, len(g)) for g in (graph, moved)]
    first = graphs.propagated(matrices[0], graph.features, 2)
    second = graphs.propagated(matrices[1], moved.features, 2)
    np.testing.assert_allclose(second, first[order], rtol=1e-5, atol=1e-6)


def test_rows_are_scaled_and_rows_of_zeros_stay():
    x = np.asarray([[3.0, -4.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(graphs.scaled_rows(x, "sum")[0], [3 / 7, -4 / 7])
    np.testing.assert_allclose(graphs.scaled_rows(x, "unit")[0], [0.6, -0.8])
    for rows in ("sum", "unit", "none"):
        assert (graphs.scaled_rows(x, rows)[1] == 0).all()
    for size in (1e30, 1e-30):  # whose squares float32 does not hold
        found = graphs.scaled_rows(x * np.float32(size), "unit")
        np.testing.assert_allclose(found[0], [0.6, -0.8], rtol=1e-6)


def _distances(graph):
    reach = _dense(graph) > 0
    found = np.full(reach.shape, 99)
    power = np.eye(len(graph), dtype=bool)
    for hop in range(4):
        found[power & (found == 99)] = hop
        power = power @ reach
    return found


@pytest.mark.parametrize("degrees", ["graph", "subgraph"])
def test_subgraphs_hold_all_that_is_near(graph, degrees):
    found = graphs.subgraphs(graph, hops=2, size=len(graph), degrees=degrees)
    apart, dense = _distances(graph), _dense(graph)
    assert found.cut == 0
    for v in range(len(graph)):
        near = np.flatnonzero(apart[v] <= 2)
        count = len(near)
        nodes = found.nodes[v, :count]
        assert nodes[0] == v and set(nodes) == set(near)
        assert (found.nodes[v, count:] == v).all()
        assert (np.diff(apart[v][nodes]) >= 0).all()
        if degrees == "graph":
            own = dense[np.ix_(nodes, nodes)]
        else:
            own = (dense[np.ix_(nodes, nodes)] > 0).astype(float)
            half = np.diag(own.sum(1) ** -0.5)
            own = half @ own @ half
        np.testing.assert_allclose(found.links[v, :count, :count], own, rtol=1e-5)
        assert found.links[v].sum() == pytest.approx(own.sum(), rel=1e-4)


def test_subgraphs_beyond_the_memory_are_refused_before_they_are_made(graph, monkeypatch):
    monkeypatch.setattr(cost, "host_memory", lambda: 8 * len(graph) * 4 * 5)
    # To ask for devices would start them.
    monkeypatch.setattr(jax, "local_devices", lambda: pytest.fail("started"))
    monkeypatch.setattr(jax, "process_count", lambda: pytest.fail("started"))
    graphs.subgraphs(graph, hops=1, size=4)
    monkeypatch.setattr(np, "zeros", lambda *args: pytest.fail("made"))
    with pytest.raises(ValueError, match=r"subgraphs of 5 nodes each.*--app\.most-nodes"):
        graphs.subgraphs(graph, hops=1, size=5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hops": 0}, "hops is 0; expected an integer of 1 or more"),
        ({"hops": None}, "hops is None"),
        ({"size": 2.5}, "size is 2.5"),
        ({"degrees": "whole"}, "degrees is 'whole'; expected one of subgraph, graph"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_numbers_of_subgraphs_are_checked(graph, options, said):
    with pytest.raises(ValueError, match=said):
        graphs.subgraphs(graph, **{"hops": 2, "size": 4, **options})


def test_features_of_other_nodes_are_refused(graph):
    matrix = graphs.adjacency(graph.edges, len(graph))
    with pytest.raises(ValueError, match="features have 3 rows, and the matrix is of"):
        graphs.propagated(matrix, np.ones((3, 2), np.float32), 1)
    with pytest.raises(ValueError, match=r"hops is 1\.5"):
        graphs.propagated(matrix, graph.features, 1.5)


def test_a_cut_subgraph_keeps_the_nearest(graph):
    found = graphs.subgraphs(graph, hops=2, size=5)
    again = graphs.subgraphs(graph, hops=2, size=5)
    apart = _distances(graph)
    np.testing.assert_array_equal(found.nodes, again.nodes)
    assert found.cut == sum((row <= 2).sum() > 5 for row in apart)
    for v, nodes in enumerate(found.nodes):
        kept = sorted(apart[v][list(dict.fromkeys(nodes.tolist()))])
        assert kept == sorted(apart[v][apart[v] <= 2])[: len(kept)]


def test_splits_are_all_choices_and_keep_nodes_apart(graph):
    for validation in ("classes", "nodes"):
        seen = []
        for number in range(1, graphs.num_splits(6, 2) + 1):
            split = graphs.split_nodes(graph.labels, number=number, validation=validation)
            seen.append(split.classes["test"])
            nodes = np.concatenate(list(split.nodes.values()))
            assert sorted(nodes) == list(range(len(graph)))
            for part, of_part in split.nodes.items():
                assert set(graph.labels[of_part]) == set(split.classes[part])
            assert not set(split.classes["test"]) & set(split.classes["train"])
            assert not set(split.classes["test"]) & set(split.classes["validation"])
            if validation == "classes":
                assert not set(split.classes["validation"]) & set(split.classes["train"])
        assert seen == list(itertools.combinations(range(6), 2))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"number": 16}, "split_number is 16; expected 1 to 15"),
        ({"number": 0}, "split_number is 0"),
        ({"test_classes": 4}, "leave none of 6"),
    ],
)
def test_splits_are_checked(graph, options, said):
    with pytest.raises(ValueError, match=said):
        graphs.split_nodes(graph.labels, **options)


def test_options_that_are_not_read_are_not_checked(graph):
    split = graphs.split_nodes(graph.labels, validation="nodes", validation_classes=0)
    assert split.classes["train"] == split.classes["validation"]
    split = graphs.split_nodes(graph.labels, validation="classes", validation_share=0)
    assert len(split.classes["validation"]) == 2


def test_tasks_show_the_nodes_of_their_part(graph):
    split = graphs.split_nodes(graph.labels, number=3)
    ids = np.arange(len(graph), dtype=np.float32)[:, None]
    options = {"num_ways": 2, "num_support": 2, "num_query": 3}
    for part, of_part in split.nodes.items():
        tasks = graphs.node_tasks(ids, of_part, graph.labels, graph.class_names, **options)
        batch = jax.jit(jax.vmap(tasks))(jax.random.split(jax.random.key(0), 60))
        nodes = {
            name: np.asarray(getattr(batch, name).x)[..., 0].astype(int)
            for name in ("support", "query")
        }
        assert set(nodes["query"].ravel()) == set(of_part)
        chosen = np.asarray(batch.info["class_ids"])
        for name, of_set in nodes.items():
            y = np.asarray(getattr(batch, name).y)
            classes = np.asarray(split.classes[part])[np.take_along_axis(chosen, y, 1)]
            np.testing.assert_array_equal(graph.labels[of_set], classes)
        for one, other in zip(nodes["support"], nodes["query"]):
            assert not set(one) & set(other)


# -- What users hand in ------------------------------------------------------------------


def test_doubles_and_loops_are_left_out_and_nodes_may_have_no_class():
    graph = graphs.graph_of(
        np.eye(4), [[0, 1], [1, 0], [0, 1], [2, 2]], [5, 7, -1, 5], name="g"
    )
    assert graph.edges.tolist() == [[0, 1]]
    assert graph.info == {"self_links": 1, "repeated": 2, "isolated": 2, "empty": 0}
    assert graph.labels.tolist() == [0, 1, -1, 0] and graph.class_names == ("5", "7")


class _Compressed:
    data = np.asarray([1.0, 2.0, 3.0])
    indices = np.asarray([1, 1, 0])
    indptr = np.asarray([0, 2, 2, 3])
    shape = (3, 2)


def test_compressed_features_are_rows():
    graph = graphs.graph_of(_Compressed(), [[0, 2]], ["a", "b", "a"])
    np.testing.assert_array_equal(graph.features, [[0, 3], [0, 0], [3, 0]])
    assert graph.info["empty"] == 1


X, EDGES, Y = np.eye(3), [[0, 1], [1, 2]], [0, 1, 1]


def _csr(**changes):
    parts = {k: getattr(_Compressed, k) for k in ("data", "indices", "indptr", "shape")}
    return {**parts, **{k: np.asarray(v) for k, v in changes.items()}}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((X, [[0, 1], [1, 3]], Y), "edges hold 3 in row 1, column 1.*outside 0..2"),
        ((X, [[0, 1], [-1, 2]], Y), "edges hold -1 in row 1, column 0"),
        ((X, [[0.0, 1.0]], Y), "edges have dtype float64; expected integers"),
        ((X, [[0, 1, 2], [1, 2, 0]], Y), "edges have the shape.*Transpose"),
        ((X * np.nan, EDGES, Y), "features hold nan in row 0, column 0"),
        ((X * 1e300, EDGES, Y), "features hold inf in row 0, column 0"),
        ((X.astype(str), EDGES, Y), "features have dtype <U"),
        ((X[0], EDGES, Y), r"features have the shape \[3\]"),
        ((X, EDGES, [0, 1]), r"labels have the shape \[2\]; expected \[3\]"),
        ((X, EDGES, [0, 1, -2]), "labels hold -2 in row 2"),
        ((X, EDGES, [0.0, 1.0, 1.0]), "labels have dtype float64"),
        ((X, EDGES, ["a", " ", "b"]), "labels are empty in row 1"),
        ((X, EDGES, [0, 0, -1]), "labels name 1 classes"),
        ((_csr(indices=[1, 2, 0]), EDGES, Y), "attr_indices holds 2 at 1, in row 0"),
        ((_csr(indptr=[0, 2, 1, 3]), EDGES, Y), "attr_indptr falls in row 1"),
        ((_csr(indptr=[0, 2, 3]), EDGES, Y), "attr_indptr has 3 values"),
        ((_csr(data=[1.0, np.inf, 0]), EDGES, Y), "features hold inf in row 0, column 1"),
        ((_csr(shape=[10**7, 10**6]), EDGES, Y), "attr_indptr has|take"),
    ],
)
def test_what_is_wrong_is_said_by_row_and_column(given, said):
    with pytest.raises((TypeError, ValueError), match=said):
        graphs.graph_of(*given)


def test_class_names_belong_to_the_labels():
    graph = graphs.graph_of(X, EDGES, Y, class_names=["a", "b", "c"])
    assert graph.class_names == ("a", "b")
    for names in ([0, 1, 2], np.arange(3), range(3)):
        graph = graphs.graph_of(X, EDGES, Y, class_names=names)
        assert graph.class_names == ("0", "1")
    with pytest.raises(ValueError, match="class_names has 1 names"):
        graphs.graph_of(X, EDGES, Y, class_names=["a"])


def test_files_are_read_and_nothing_is_unpickled(tmp_path):
    folder = write_own_graph(tmp_path / "own")
    graph = graphs.load_graph("own", tmp_path)
    assert graph.digest == graphs.load_graph("own", folder).digest
    np.testing.assert_array_equal(graph.labels, own_graph()[2])
    path = folder / "graph.npz"
    objects = np.asarray([{"a": 1}] * 3, object)
    np.savez(path, features=objects, edges=np.asarray(EDGES), labels=np.asarray(Y))
    with pytest.raises(ValueError, match=r"features cannot be read.*unpickled"):
        graphs.load_graph("own", folder)
    np.savez(path, features=X, labels=np.asarray(Y))
    with pytest.raises(ValueError, match="neither of edges and adj_data"):
        graphs.load_graph("own", folder)
    np.savez(path, features=X, edges=np.asarray(EDGES))
    with pytest.raises(ValueError, match="it lacks labels"):
        graphs.load_graph("own", folder)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        graphs.load_graph("own", folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"missing \(graph\.npz\)"):
        graphs.load_graph("own", folder)
    with pytest.raises(ValueError, match="Did you mean 'cora'"):
        graphs.load_graph("kora", folder)


@pytest.mark.data
def test_stored_graphs_are_what_their_papers_say(shared_dir):
    cora = graphs.load_graph("cora", shared_dir / "data")
    assert len(cora) == 2708 and cora.features.shape[1] == 1433
    # 5,429 citations, of which 151 pairs cite one another.
    assert len(cora.edges) == 5278 and cora.info["repeated"] == 151
    counts = np.bincount(cora.labels).tolist()
    assert counts == [298, 418, 818, 426, 217, 180, 351]


def test_links_that_are_no_numbers_are_refused():
    parts = {"indices": [0, 2, 1], "indptr": [0, 1, 2, 3], "shape": [3, 3]}
    entries = {"data": np.asarray([1.0, np.nan, 1.0])}
    given = entries | {name: np.asarray(value) for name, value in parts.items()}
    with pytest.raises(ValueError, match="adj holds nan in row 1, column 2"):
        graphs.graph.as_edges(given, 3)


@pytest.mark.parametrize("dtype", [np.int32, bool])
def test_whole_numbers_are_computed_with_as_floats(dtype):
    matrix, whole = graphs.adjacency(np.array([[0, 1]]), 3), np.eye(3, dtype=dtype)
    exact = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(
        graphs.propagated(matrix, whole, 1), graphs.propagated(matrix, exact, 1)
    )
    np.testing.assert_allclose(
        graphs.scaled_rows(2 * whole.astype(int) + whole, "unit"), exact, rtol=1e-6
    )


def test_nodes_without_a_class_are_no_examples():
    labels, x = np.array([0, 0, 1, 1, -1, -1]), np.eye(6, dtype=np.float32)
    options = {"num_ways": 2, "num_shots": 1, "num_queries": 1}
    with pytest.raises(ValueError, match=r"nodes holds 4, whose label is -1.* a class"):
        graphs.node_tasks(x, np.arange(6), labels, ("x", "y"), **options)


@pytest.mark.parametrize("label", [float("nan"), None, 7])
def test_labels_beside_text_are_no_classes(label):
    features, links = np.eye(3, dtype=np.float32), np.array([[0, 1]])
    with pytest.raises(TypeError, match=r"labels hold .* in row 1, .* beside text"):
        graphs.graph_of(features, links, ["a", label, "b"])
