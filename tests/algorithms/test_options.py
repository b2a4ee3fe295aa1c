"""What constructors take: the shared options, their own arguments, and nothing else."""

import functools
import inspect
import re
import typing

import jax
import optax
import pytest
from bench import CE
from constructors import CONSTRUCTORS, make
from tiny import WAYS, blobs, plain

import metalearn as ml
from metalearn.algorithms.bayesian.builder import particle_learner
from metalearn.algorithms.bayesian.posterior import CLASSIFICATION
from metalearn.algorithms.bilevel import Hooks, bilevel
from metalearn.algorithms.options import ADAPTATION, DEFAULTS, Options, check, takes_options

SHARING = [
    name
    for name in CONSTRUCTORS
    if getattr(getattr(ml, name), "shared_options", None) is ADAPTATION
]
OF_THE_BUILDER = [*Hooks._fields, "hooks", "count_steps", "mixing"]
DECIDED = [
    (name, option)
    for name in SHARING
    for option in Options.__annotations__.keys()
    - inspect.signature(getattr(ml, name)).parameters.keys()
]


def test_all_constructors_are_found():
    assert {"maml", "leo", "protonet", "reptile", "fine_tune", "emaml"} <= set(CONSTRUCTORS)
    assert len(CONSTRUCTORS) >= 28 and len(SHARING) >= 20
    filtered = ("anil", "boil", "cavia", "mt_net", "t_net")
    assert {(name, "adapt_filter") for name in filtered} <= set(DECIDED)
    assert ("fomaml", "differentiation") in DECIDED
    for name in CONSTRUCTORS:
        assert ml.describe(make(name))["name"] == name


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (name, option)
        for name in CONSTRUCTORS
        for option in ("nonsense", *OF_THE_BUILDER)
        if option not in inspect.signature(getattr(ml, name)).parameters
    ],
)
def test_other_options_are_refused_by_what_was_called(name, option):
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an un\w+ .*'{option}'"):
        make(name, **{option: object()})


@pytest.mark.parametrize(("name", "option"), DECIDED)
def test_what_a_learner_decides_itself_cannot_be_given(name, option):
    assert option not in inspect.signature(getattr(ml, name)).parameters
    words = rf"^{name}\(\) decides {option} itself; leave it out\. It takes .*norm"
    with pytest.raises(TypeError, match=words):
        make(name, **{option: DEFAULTS[option]})


def test_hyper_parameters_are_learned_only_where_they_are_an_argument():
    takes = {
        name
        for name in CONSTRUCTORS
        if "inner_hparams" in inspect.signature(getattr(ml, name)).parameters
    }
    assert takes == {"maml", "fomaml", "anil", "boil", "bmg"}
    for name in sorted(takes):
        learner = make(name, model=plain(), inner_opt=optax.sgd, inner_hparams=0.1)
        variables = jax.eval_shape(
            learner.init, jax.random.key(0), blobs(jax.random.key(1))
        )
        assert set(variables.params) == {"model", "inner"}


@pytest.mark.parametrize(
    "name", [n for n in SHARING if (n, "mask_absent_classes") not in DECIDED]
)
def test_near_options_are_suggested(name):
    with pytest.raises(TypeError, match="Did you mean mask_absent_classes"):
        make(name, mask_absent=True)


@pytest.mark.parametrize("name", SHARING)
def test_shared_options_are_listed_and_taken(name):
    constructor = getattr(ml, name)
    parameters = inspect.signature(constructor).parameters
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    decided = {option for owner, option in DECIDED if owner == name}
    assert set(Options.__annotations__) - parameters.keys() == decided
    for option in Options.__annotations__.keys() - decided:
        given = "other" if option == "name" else parameters[option].default
        learner = make(name, **{option: given})
        assert ml.describe(learner)["name"] == ("other" if option == "name" else name)


FILTERED = [
    name
    for name in CONSTRUCTORS
    if {"adapt_filter", "model"} <= inspect.signature(getattr(ml, name)).parameters.keys()
]


@pytest.mark.parametrize("name", FILTERED)
def test_an_expression_filters_as_a_function_does(name):
    """So that a recipe or a command line can say what adapts."""

    def shapes(select):
        takes = inspect.signature(getattr(ml, name)).parameters
        own = {"num_ways": WAYS} if "features" in takes else {}
        own |= {"remember": "all"} if "remember" in takes else {}  # of the head too
        learner = make(name, model=plain(), adapt_filter=select, **own)
        variables = jax.eval_shape(learner.init, KEY, TASK)
        adapt = lambda v, support: learner.adapt(v, support, key=KEY)
        both = variables, jax.eval_shape(adapt, variables, TASK.support)
        found = jax.tree_util.tree_leaves_with_path(both)
        return [(str(path), leaf.shape, leaf.dtype) for path, leaf in found]

    assert shapes("^head") == shapes(lambda path, leaf: path.startswith("head"))


KEY = jax.random.key(0)
TASK = jax.eval_shape(blobs, KEY)


@pytest.mark.parametrize("select", ["w$", "head|nothing", r"^(?!.*b)"])
def test_an_expression_moves_the_parameters_whose_paths_it_occurs_in(select):
    learner = ml.maml(plain(), CE, optax.sgd(0.5), adapt_filter=select)
    task = blobs(jax.random.key(1))
    variables = learner.init(KEY, task)
    before = variables.params["model"]
    after = learner.adapt(variables, task.support).params
    moved = {
        f"{layer}/{name}": bool((after[layer][name] != leaf).any())
        for layer, leaves in before.items()
        for name, leaf in leaves.items()
    }
    assert moved == {path: re.search(select, path) is not None for path in moved}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_keyword_argument_has_a_type_and_is_described(name):
    """A command line is made of these."""
    constructor = getattr(ml, name)
    hints = typing.get_type_hints(constructor)
    entries = re.findall(r"^  (\w+): \S", inspect.cleandoc(constructor.__doc__), re.M)
    for argument in inspect.signature(constructor).parameters.values():
        assert entries.count(argument.name) == 1, f"{argument.name} is not described once"
        kind = hints.get(argument.name, argument.annotation)
        assert kind is not typing.Any and not isinstance(kind, str), argument
        assert kind is not str or argument.name in WORDS, f"{argument} has its choices"


WORDS = (
    "adapt_filter",
    "shared",
    "name",
    "head",
    "context",
    "adapt",
    "transforms",
    "warp",
    "fresh",
    "table",
    "item",
)  # any word will do


def test_an_option_that_is_described_is_not_described_again():
    @takes_options(but=("adapt_filter",))
    def own(x, *, norm: str = "batch", **options: typing.Unpack[Options]):
        """One line.

        Args:
          x: A number.
          norm: Its own.
          **options: Shared ones.

        Returns:
          What it was given.
        """
        return x, norm, options

    assert own(1, norm="running", task_chunk=2) == (1, "running", {"task_chunk": 2})
    assert own.__doc__.count("  norm: ") == 1 and "**options" not in own.__doc__
    assert own.__doc__.index("  task_chunk: ") < own.__doc__.index("Returns:")
    assert list(inspect.signature(own).parameters)[:2] == ["x", "norm"]
    with pytest.raises(TypeError, match=r"own\(\) decides adapt_filter itself"):
        own(1, adapt_filter=None)


def test_check_names_all_that_a_constructor_takes():
    def owner(model, *, width=3, **options):
        pass

    check(owner, ["norm", "name"])
    with pytest.raises(TypeError, match=r"owner\(\) got .*'model'.*takes .*norm, .*width"):
        check(owner, ["model"])


def test_variables_of_a_bare_model_are_refused_with_the_remedy():
    learner = ml.maml(plain(), CE, optax.sgd(0.1))
    task = blobs(jax.random.key(0))
    variables = plain().init(jax.random.key(1), task.support.x)
    with pytest.raises(ValueError, match=r"variables.params has no part 'model'.*bare"):
        learner.adapt(variables, task.support)
    half = ml.Variables(params={"model": variables.params}, state={})
    with pytest.raises(ValueError, match=r"variables.state has no part 'model'"):
        learner.adapt(half, task.support)


@pytest.mark.parametrize("name", ["maml", "cavia", "meta_sgd", "hsml", "bmg"])
def test_variables_have_one_shape(name):
    """What all of the family share is found in the same place."""
    options = {"num_ways": 3} if name == "hsml" else {}
    options |= {"context": "^head/"} if name == "cavia" else {}
    learner, task = make(name, model=plain(), **options), blobs(jax.random.key(0))
    variables = jax.eval_shape(learner.init, jax.random.key(1), task)
    assert set(variables.params["model"]) == {"body", "head"}
    assert variables.state == {"model": {}, "step": jax.ShapeDtypeStruct((), "int32")}


RATE = 0.375  # which every dtype holds
LEARNED_RATE = {"inner_opt": optax.sgd, "inner_hparams": RATE}
# Options, and what of params["inner"] starts there.
STARTS = {
    **dict.fromkeys(["maml", "fomaml", "anil", "boil", "bmg"], (LEARNED_RATE, lambda p: p)),
    "alpha_maml": ({"initial_rate": RATE}, lambda p: p),
    "meta_sgd": ({"initial_rate": RATE}, lambda p: p),
    "maml_plus_plus": ({"initial_rate": RATE}, lambda p: p["rates"]),
    "meta_curvature": ({"rate": RATE, "learn_rate": True}, lambda p: p["rate"]),
    "mt_net": ({"initial_logit": RATE}, lambda p: p),
}


@pytest.mark.parametrize("name", STARTS)
def test_what_is_learned_for_inner_steps_starts_where_it_was_told(name):
    options, part = STARTS[name]
    model = ml.from_linen(ml.models.TNetMLP(3, (4,))) if name == "mt_net" else plain()
    learner = make(name, model=model, **options)
    inner = learner.init(jax.random.key(0), blobs(jax.random.key(1))).params["inner"]
    leaves = jax.tree.leaves(part(inner))
    assert leaves and all((leaf == RATE).all() for leaf in leaves)


def test_outer_steps_are_counted():
    learner, task = ml.maml(plain(), CE, optax.sgd(0.1)), blobs(jax.random.key(0))
    estimate = jax.jit(functools.partial(learner.estimate, key=jax.random.key(2)))
    variables, tasks = learner.init(jax.random.key(1), task), ml.stack_tasks([task, task])
    for step in range(2):
        assert int(variables.state["step"]) == step
        state = estimate(variables, tasks).state
        variables = ml.Variables(params=variables.params, state=state)


def test_builders_refuse_what_a_constructor_without_the_decorator_hands_on():
    with pytest.raises(TypeError, match=r"bilevel\(\) got an unknown option 'nrom'.*norm"):
        bilevel("mine", plain(), CE, optax.sgd(0.1), num_steps=1, nrom="batch")
    with pytest.raises(TypeError, match=r"particle_learner\(\) got an unknown .*'nrom'"):
        particle_learner(
            "mine",
            plain(),
            CE,
            optax.sgd(0.1),
            CLASSIFICATION,
            mixing=optax.identity(),
            num_particles=2,
            num_steps=1,
            outer=None,
            settings={},
            nrom="batch",
        )
