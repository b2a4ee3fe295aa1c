"""The examples of docstrings, run: those of the modules named here."""

import doctest
import importlib

import jax
import jax.numpy as jnp
import optax
import pytest

import metalearn as ml

# Examples elsewhere lean on a model or a data set of the reader, and are not run.
MODULES = (
    "core.choices",
    "core.losses",
    "core.metrics",
    "core.optional",
    "core.task",
    "core.trees",
    "environments.bandit_oracles",
    "environments.bandits",
    "environments.episodes",
    "environments.maze",
    "environments.navigation",
    "environments.tabular",
    "environments.thrusters",
    "hypergradient.implicit",
    "hypergradient.lookahead",
    "hypergradient.sama",
    "hypergradient.unrolled",
    "hypergradient.weights",
    "policies.advantages",
    "policies.distributions",
    "policies.policy",
    "policies.surrogates",
    "tasks.ambiguous",
    "tasks.families",
    "tasks.mixtures",
    "tasks.sinusoid",
    "tasks.styles",
    "training.containers",
)
FUNCTIONS = {
    "algorithms.gradient.maml_plus_plus": "step_weights",
    "algorithms.joint.meta_distil": "soft_loss",
    "tasks.own": "from_tasks",
    "tasks.generated": "from_generator",
    "tasks.table": "from_table",
}
NAMES = {"jax": jax, "jnp": jnp, "optax": optax, "ml": ml}


def find(module, function=""):
    """Examples of a module, or of one of its functions: those that are not empty."""
    module = importlib.import_module(f"metalearn.{module}")
    thing = getattr(module, function) if function else module
    name = f"{module.__name__}.{function}".rstrip(".")
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = finder.find(thing, name, module, {**vars(module), **NAMES})
    return [test for test in found if test.examples]


def failures(tests):
    """What the failing examples print, as one text."""
    reports = []
    runner = doctest.DocTestRunner(verbose=False)
    for test in tests:
        runner.run(test, out=reports.append)
    return "".join(reports)


@pytest.mark.parametrize(
    ("module", "function"), [*((m, "") for m in MODULES), *FUNCTIONS.items()]
)
def test_examples_do_what_they_print(module, function):
    tests = find(module, function)
    assert tests, f"{module} {function} has no example left; take it off the list"
    wrong = failures(tests)
    assert not wrong, wrong


def test_a_wrong_example_is_told():
    parser = doctest.DocTestParser()
    test = parser.get_doctest(
        ">>> int(jnp.ones(2).sum())\n3\n", dict(NAMES), "wrong", "", 0
    )
    assert "Expected:" in failures([test])
