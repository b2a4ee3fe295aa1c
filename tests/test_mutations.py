"""Wrong versions of learners: the tables are in order, and every one is noticed.

`python -m tests.mutations` runs the wrong versions and lists them with their tests.
"""

import ast
import collections
import functools
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import Mutation, every
from mutations.runner import apply, described

from metalearn.algorithms import registry

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "metalearn"
MUTATIONS = every()
IDS = [f"{i}-{mutation.learner}" for i, mutation in enumerate(MUTATIONS)]
of_each = pytest.mark.parametrize("mutation", MUTATIONS, ids=IDS)


def test_every_learner_has_three_mutations():
    counts = collections.Counter(mutation.learner for mutation in set(MUTATIONS))
    few = [name for name in registry.LEARNERS if counts[name] < 3]
    assert not few, few
    assert not counts.keys() - registry.LEARNERS.keys()
    assert len(set(MUTATIONS)) == len(MUTATIONS)


@of_each
def test_mutation_changes_one_place_of_the_code(mutation):
    text = (PACKAGE / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1
    changed = text.replace(mutation.old, mutation.new)
    trees = [ast.dump(ast.parse(source)) for source in (text, changed)]
    assert trees[0] != trees[1]


@functools.cache
def functions_of(file):
    """The functions of a file, with their decorators as text."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node.name: [*map(ast.unparse, node.decorator_list)] for node in functions}


@of_each
def test_mutation_names_a_quick_test(mutation):
    file, _, name = mutation.test.partition("::")
    name, bracket, _ = name.partition("[")
    assert name.startswith("test_")
    decorators = functions_of(file)[name]
    assert "pytest.mark.slow" not in decorators
    assert any("parametrize" in d for d in decorators) or not bracket


def test_a_text_that_is_not_found_once_is_refused(tmp_path):
    (tmp_path / "file.py").write_text("a = b + b\nc = d\n", encoding="utf-8")
    good = Mutation("maml", "file.py", "c = d", "c = -d", "test.py::test")
    assert described(good) == "file.py: c = d -> c = -d"
    for old in ("b", "e"):
        with pytest.raises(ValueError, match=f"'{old}' occurs . times"):
            apply(Mutation("maml", "file.py", old, "f", "test.py::test"), tmp_path)
    apply(good, tmp_path)
    assert (tmp_path / "file.py").read_text() == "a = b + b\nc = -d\n"


@pytest.mark.slow  # ten seconds for each of some ninety
def test_all_mutations_are_killed():
    command = [sys.executable, "-m", "tests.mutations"]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
