"""Functions of data that are given another kind of thing have a message for it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from own_graph import own_graph
from own_visits import own_visits

from metalearn.core.errors import is_said
from metalearn.data import distillation, domains, graphs, noisy, places, ratings

NOWHERE = "/no/such/folder"
BAD = {
    "None": None,
    "text": "a",
    "fractions": np.array([0.5, 1.5]),
    "empty": np.zeros(0),
    "fraction": 1.5,
}


def _ratings():
    users = {"user": [f"u{i}" for i in range(40)], "age": ["a", "b"] * 20}
    items = {"item": list(range(40)), "kind": ["x", "y"] * 20}
    rows = [(f"u{i % 40}", (i // 40 + i) % 40, 3.0) for i in range(400)]
    table = dict(zip(("user", "item", "rating"), zip(*rows, strict=True), strict=True))
    table = {name: list(column) for name, column in table.items()}
    given = {"ratings": table, "users": users, "items": items, "user": "user"}
    made = ratings.rating_tables(**given)
    split = ratings.cold_start(made, held=1)
    return {
        "rating_tables": (ratings.rating_tables, given),
        "cold_start": (
            ratings.cold_start,
            {"ratings": made, "validation_users": 0.1, "held": 1, "seed": 0},
        ),
        "item_parts": (
            ratings.item_parts,
            {"ratings": made, "validation": 0.1, "test": 0.2, "seed": 0},
        ),
        "without_unseen": (
            ratings.without_unseen,
            {"ratings": made, "mask": np.ones(len(made), bool)},
        ),
        "mask": (split.mask, {"ratings": made, "part": "train", "state": "warm"}),
        "load_ratings": (ratings.load_ratings, {"name": "own", "data_dir": NOWHERE}),
    }


def _places():
    visits = places.visit_table(own_visits())
    sizes = {"least_visits": 1, "least_users": 4, "negatives": 2, "dim": 4}
    areas = places.areas_of(visits, **sizes)
    rows = {"user": np.array([0, 1, 1]), "place": np.array([0, 1, 2])}
    return {
        "visit_table": (
            places.visit_table,
            {"visits": own_visits(), "user": "user", "time": "time"},
        ),
        "areas_of": (places.areas_of, {"visits": visits, "seed": 0, **sizes}),
        "area_of_places": (
            places.area_of_places,
            {"visits": visits, "area_visits": 80, "least_visits": 1},
        ),
        "place_tasks": (places.place_tasks, {"areas": areas}),
        "known_categories": (
            places.known_categories,
            {"base": areas[:2], "others": areas[2:], "num": 4},
        ),
        "place_vectors": (
            places.place_vectors,
            {**rows, "num_users": 2, "num_places": 3, "dim": 3},
        ),
        "load_visits": (places.load_visits, {"name": "own", "data_dir": NOWHERE}),
    }


def _graphs():
    features, edges, labels = own_graph()
    graph = graphs.graph_of(features, edges, labels)
    matrix = graphs.adjacency(graph.edges, len(graph))
    return {
        "graph_of": (
            graphs.graph_of,
            {"features": features, "labels": labels, "edges": []},
        ),
        "adjacency": (graphs.adjacency, {"edges": graph.edges, "num": len(graph)}),
        "propagated": (
            graphs.propagated,
            {"matrix": matrix, "features": graph.features, "hops": 1},
        ),
        "scaled_rows": (graphs.scaled_rows, {"features": features, "rows": "sum"}),
        "split_nodes": (
            graphs.split_nodes,
            {
                **{"labels": graph.labels, "number": 1, "test_classes": 2},
                **{"validation": "classes", "validation_classes": 2},
            },
        ),
        "split_nodes by nodes": (
            graphs.split_nodes,
            {"labels": graph.labels, "validation": "nodes", "validation_share": 0.2},
        ),
        "num_splits": (graphs.num_splits, {"num_classes": 6, "test_classes": 2}),
        "subgraphs": (graphs.subgraphs, {"graph": graph, "hops": 1, "size": 3}),
        "node_tasks": (
            graphs.node_tasks,
            {
                **{"features": graph.features, "nodes": np.arange(len(graph))},
                **{"labels": graph.labels, "class_names": graph.class_names},
                **{"num_ways": 2, "num_support": 1, "num_query": 1},
            },
        ),
    }


def _images():
    images = np.zeros((80, 4, 4, 1), np.uint8)
    labels, domain = np.tile([0, 1], 40), np.repeat([0, 1], 40)
    named = {"class_names": ("a", "b"), "name": "made", "seed": 0}
    of_domains = {"class_names": "ab", "domain_names": "xy"}
    split = {"clean_per_class": 3, "validation": 0.2, "test": 0.2, **named}
    quiz = {"quiz": 0.1, "validation": 0.1, "test": 0.1, **named}
    data = domains.domain_images(images, labels, domain, **of_domains)
    return {
        "domain_images": (
            domains.domain_images,
            {"images": images, "labels": labels, "domains": domain, **of_domains},
        ),
        "validation_rows": (
            domains.validation_rows,
            {"data": data, "share": 0.2, "seed": 1},
        ),
        "rotated": (domains.rotated, {"images": images[..., 0]}),
        "load_domains": (domains.load_domains, {"name": "own", "data_dir": NOWHERE}),
        "domain_folder": (domains.domain_folder, {"path": NOWHERE}),
        "flipped": (
            noisy.flipped,
            {"labels": labels, "num_classes": 2, "share": 0.2, "kind": "pair", "seed": 0},
        ),
        "long_tail": (noisy.long_tail, {"labels": labels, "num_classes": 2, "seed": 0}),
        "split_of": (noisy.split_of, {"images": images, "labels": labels, **split}),
        "noisy check_set": (
            noisy.check_set,
            {"data": noisy.split_of(images, labels, **split)},
        ),
        "load_labelled": (noisy.load_labelled, {"name": "mnist", "data_dir": NOWHERE}),
        "load_own": (noisy.load_own, {"data_dir": NOWHERE, "channels": 3}),
        "divided": (distillation.divided, {"labels": labels, **quiz}),
        "load_quiz_set": (
            distillation.load_quiz_set,
            {"name": "own", "data_dir": NOWHERE, "quiz": 0.1, "seed": 1, "dim": 10},
        ),
        "quiz check_set": (distillation.check_set, {"data": None}),
    }


# What every call needs besides, and may not be wrong at.
NEEDED = {"rotated": {"angle": 30}, "long_tail": {"imbalance": 2.0}}
# Without links a graph is one.
FINE = {("graph_of", "edges", "empty")}


@pytest.mark.parametrize("calls", [_ratings, _places, _graphs, _images])
def test_another_kind_of_thing_is_named_in_a_message(calls):
    raw = []
    for function, (call, given) in calls().items():
        for name in given.keys() - {"name"}:
            for bad, value in BAD.items():
                if (function, name, bad) in FINE:
                    continue
                told = {**given, **NEEDED.get(function, {}), name: value}
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("error")
                        call(**told)
                except Exception as error:
                    if not is_said(error):
                        raw.append(f"{function}: {name}={bad}: {error!r}")
                else:
                    raw.append(f"{function}: {name}={bad} was taken")
    assert not raw, "\n".join(raw)


def test_the_message_names_argument_value_and_remedy():
    with pytest.raises(TypeError, match=r"visits is 'a'; expected Visits, as visit_table"):
        places.areas_of("a")
    with pytest.raises(TypeError, match=r"labels is an array of float64 \[2\]; .*whole"):
        noisy.flipped(BAD["fractions"], 2, share=0.5, seed=0)
    with pytest.raises(ValueError, match=r"edges holds 7 in row 1, .* from 0 to 2"):
        graphs.adjacency(np.array([[0, 1], [1, 7]]), 3)
    with pytest.raises(TypeError, match=r"data_dir is 1\.5; expected the path of a folder"):
        ratings.load_ratings("own", 1.5)
