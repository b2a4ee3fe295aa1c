"""The table of learners: one record each, and the only file that lists them.

Read by `metalearn list`, the README's table, recipes and the conformance suite.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import Any

from metalearn import models
from metalearn.algorithms import baselines, bayesian, context, gradient, memory, metric
from metalearn.algorithms.record import Card, Record, parameters
from metalearn.core.learner import MetaLearner


def _record(
    build: Callable[..., MetaLearner], title: str, paper: str, **rest: Any
) -> Record:
    return Record(build=build, name=build.__name__, title=title, paper=paper, **rest)


# Accuracies of "mini" are on mini-ImageNet, 5-way, 1-shot. [P]: read in the paper or in
# its released code; [S]: quoted by a second source.
RECORDS: tuple[Record, ...] = (
    _record(
        gradient.maml,
        "MAML",
        "Finn et al., ICML 2017",
        good_for="an initialisation that a few steps adapt",
        published="mini 48.70 ± 1.84 [S]",
        result="omniglot-maml-seed0",
    ),
    _record(
        gradient.fomaml,
        "FOMAML",
        "Finn et al., ICML 2017",
        good_for="the same without second derivatives",
        published="mini 48.07 ± 1.75 [S]",
        result="against-small-fomaml",
    ),
    _record(
        gradient.reptile,
        "Reptile",
        "Nichol et al., arXiv 2018",
        good_for="first order, no query set, long adaptation",
        published="mini 47.07 ± 0.26 [S]",
        result="omniglot-reptile-seed0",
        tiny={"num_steps": 2},
    ),
    _record(
        gradient.anil,
        "ANIL",
        "Raghu et al., ICLR 2020",
        good_for="features that serve as they are: only the head adapts",
        published="mini 46.7 ± 0.4 against their MAML 46.9 ± 0.2 [P]",
        result="paired-glyphs-anil-glyphs-maml",
    ),
    _record(
        gradient.boil,
        "BOIL",
        "Oh et al., ICLR 2021",
        good_for="other domains: the body adapts, the head does not",
        published="mini 49.65 ± 0.19 against their MAML 48.47 ± 0.26 [P]",
        result="against-small-boil-steps=1500-inner_rate=0.2",
    ),
    _record(
        gradient.meta_sgd,
        "Meta-SGD",
        "Li et al., arXiv 2017",
        good_for="one step with a learned rate for every weight",
        published="mini 50.47 ± 1.87 [S]",
        result="paired-glyphs-meta-sgd-glyphs-maml",
    ),
    _record(
        gradient.maml_plus_plus,
        "MAML++",
        "Antoniou et al., ICLR 2019",
        good_for="MAML that trains steadily: loss and rates for every step",
        published="mini 52.15 ± 0.26 [S]",
        result="against-small20-maml-plus-plus",
        start=False,
        tiny={"num_steps": 2},
    ),
    _record(
        gradient.alpha_maml,
        "Alpha MAML",
        "Behl et al., ICML workshop 2019",
        good_for="no search for the inner and the outer rate",
        result="against-small-alpha-maml-steps=2000",
        outer=gradient.alpha_maml_optimiser,
    ),
    _record(
        gradient.imaml,
        "iMAML",
        "Rajeswaran et al., NeurIPS 2019",
        good_for="long inner loops in constant memory, any inner optimiser",
        published="Omniglot 20-way 1-shot 94.46 ± 0.42 [S]",
        result="against-small-imaml",
        start=False,
        # Damped, since conjugate gradients on a Hessian that is not positive definite make
        # much of the last digits.
        tiny={"num_steps": 2, "damping": 10.0},
    ),
    _record(
        context.cavia,
        "CAVIA",
        "Zintgraf et al., ICML 2019",
        good_for="a small vector that describes the task adapts",
        published="mini 47.24 ± 0.65 (32 filters) [S]",
        result="against-sinusoid-cavia",
        networks={"mlp": models.ContextMLP, "conv4": models.FilmConv4},
        curves=True,
    ),
    _record(
        context.leo,
        "LEO",
        "Rusu et al., ICLR 2019",
        good_for="classifiers on features of a large pre-trained network",
        published="mini 61.76 ± 0.08 [P]",
        result="against-features-leo",
        start=False,
        tiny={"latents": 4, "num_steps": 2, "fine_tune_steps": 1, "latent_rate": 0.1},
    ),
    _record(
        gradient.meta_curvature,
        "Meta-Curvature",
        "Park & Oliva, NeurIPS 2019",
        good_for="one inner step along a learned curvature",
        published="mini 55.73 (MC2+) [S]",
        result="against-small-meta-curvature",
    ),
    _record(
        gradient.kfo,
        "KFO",
        "Arnold et al., AISTATS 2021",
        good_for="a learned map of the inner gradients, which adapts with the weights",
        result="against-sinusoid-kfo",
        tiny={"num_steps": 2},
    ),
    _record(
        gradient.warpgrad,
        "WarpGrad",
        "Flennerhag et al., ICLR 2020",
        good_for="long adaptation: warp layers learn from single steps",
        published="mini 52.3 ± 0.8 (Warp-MAML) [S]",
        result="against-small-warpgrad",
        networks={"mlp": models.WarpMLP, "conv4": models.WarpConv4},
        start=False,
        tiny={"num_steps": 2},
        curves=True,
    ),
    _record(
        gradient.t_net,
        "T-net",
        "Lee & Choi, ICML 2018",
        good_for="a learned metric for the inner gradient",
        result="against-small-t-net",
        networks={"mlp": models.TNetMLP, "conv4": models.TNetConv4},
        curves=True,
    ),
    _record(
        gradient.mt_net,
        "MT-net",
        "Lee & Choi, ICML 2018",
        good_for="the same, with a learned choice of what adapts",
        published="mini 51.70 ± 1.84 [S]",
        result="against-small-mt-net",
        networks={"mlp": models.TNetMLP, "conv4": models.TNetConv4},
        curves=True,
    ),
    _record(
        gradient.bmg,
        "BMG",
        "Flennerhag et al., ICLR 2022",
        good_for="a longer horizon than the steps that are differentiated",
        result="against-small-bmg",
        start=False,
    ),
    _record(
        gradient.sharp_maml,
        "Sharp-MAML",
        "Abbas et al., ICML 2022",
        good_for="flat minima, in the inner loop, the outer one or both",
        result="against-small-sharp-maml",
    ),
    _record(
        gradient.es_maml,
        "ES-MAML",
        "Song et al., ICLR 2020",
        good_for="objectives and adaptation without a derivative, small networks",
        result="against-sinusoid-es-maml",
        start=False,
        tiny={"num_perturbations": 4},
    ),
    _record(
        bayesian.llama,
        "LLAMA",
        "Grant et al., ICLR 2018",
        good_for="MAML as empirical Bayes: a Laplace posterior around the adapted weights",
        published="mini 49.40 ± 1.83 [S]",
        result="calibration-ambiguous-maml",
        start=False,
    ),
    _record(
        bayesian.platipus,
        "PLATIPUS",
        "Finn et al., NeurIPS 2018",
        good_for="ambiguous tasks: a Gaussian of initialisations",
        published="mini 50.13 ± 1.86 [S]",
        result="calibration-ambiguous-maml",
        start=False,
        tiny={"combine": "mean", "num_samples": 2},
    ),
    _record(
        bayesian.bmaml,
        "BMAML",
        "Yoon et al., NeurIPS 2018",
        good_for="ambiguous tasks: particles that sample the posterior",
        result="calibration-ambiguous-maml",
        start=False,
        tiny={"num_particles": 2},
    ),
    _record(
        bayesian.emaml,
        "EMAML",
        "baseline of Yoon et al., NeurIPS 2018",
        good_for="an ensemble of MAML learners",
        result="calibration-ambiguous-maml",
        start=False,
        tiny={"num_particles": 2},
    ),
    _record(
        context.hsml,
        "HSML",
        "Yao et al., ICML 2019",
        good_for="tasks of several kinds: a learned tree of clusters gates the start",
        published="mini 50.38 [S]",
        result="families-10shot",
        since={"ordered": False},
        tiny={"num_steps": 1, "tree": (2, 1), "hidden": 4, "aggregator": "mean"},
    ),
    _record(
        context.mumomaml,
        "MuMoMAML",
        "after Vuorio et al., NeurIPS 2019",
        good_for="tasks of several kinds: a task embedding gates the start",
        result="families-10shot",
        since={"ordered": False},
        tiny={"num_steps": 1, "hidden": 4, "aggregator": "mean"},
    ),
    _record(
        memory.rnn,
        "RNN",
        "Hochreiter et al., ICANN 2001",
        good_for="streams: the state of a recurrent network is what it has learned",
        result="streams",
        start=False,
        tiny={"hidden": 4},
        traits={"order_invariant": False},
    ),
    _record(
        memory.mann,
        "MANN",
        "Santoro et al., ICML 2016",
        good_for="streams: an external memory binds examples to labels at once",
        published="Omniglot 5-class streams: 2nd 82.8, 5th 94.9 [S]",
        result="streams",
        start=False,
        tiny={"hidden": 5, "rows": 8, "width": 4, "reads": 2},
        traits={"order_invariant": False},
    ),
    _record(
        memory.snail,
        "SNAIL",
        "Mishra et al., ICLR 2018",
        good_for="sequences: causal convolutions and attention over all that was seen",
        published="mini 55.71 ± 0.99 [S]",
        result="omniglot-snail-seed0",
        start=False,
        tiny={"key_sizes": (3, 4), "value_sizes": (2, 3), "filters": 2},
        traits={"order_invariant": False},
    ),
    _record(
        memory.meta_networks,
        "Meta Networks",
        "Munkhdalai & Yu, ICML 2017",
        good_for="fast weights that are generated from the gradients of the examples",
        published="mini 49.21 ± 0.96 [S]",
        result="omniglot-meta-networks-seed0",
        start=False,
        tiny={"representation": 4, "hidden": 3, "generator": 3},
        traits={"order_invariant": False},
    ),
    _record(
        metric.protonet,
        "ProtoNet",
        "Snell et al., NeurIPS 2017",
        good_for="class means in a learned space; any number of ways",
        result="omniglot-protonet-seed0",
        start=False,
        fixed_head=False,
        traits={"relabelling": True},
    ),
    _record(
        baselines.fine_tune,
        "Fine-tuning",
        "Chen et al., ICLR 2019",
        good_for="baseline: a new head on joint training",
        fixed_head=False,
        tiny={"num_steps": 2},
        traits={"relabelling": True},
    ),
    _record(baselines.no_adaptation, "No adaptation", "", good_for="baseline: the floor"),
)
# Drivers of whole trainings, which take any learner.
DRIVERS: tuple[Card, ...] = (
    Card(
        name="follow_the_meta_leader",
        title="Online MAML",
        paper="Finn et al., ICML 2019",
        good_for="tasks that arrive one after another: meta-learning on a buffer of them",
        result="online",
    ),
)
LEARNERS: dict[str, Record] = {record.name: record for record in RECORDS}


def find(name: str) -> Record:
    """The record of a learner, or of a constructor of yours.

    Args:
      name: Name of a record, or "package.module:function".

    Raises:
      ValueError: there is none of that name, or nothing to import; suggests the nearest.
    """
    if name in LEARNERS:
        return LEARNERS[name]
    module, colon, function = str(name).partition(":")
    if not colon or not module or not function:
        near = difflib.get_close_matches(str(name), LEARNERS, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"unknown learner {name!r}.{hint} See them all with metalearn list, or give a "
            "constructor of yours as package.module:function."
        )
    try:
        build = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # whatever the user's module does
        raise ValueError(
            f"learner {name!r} cannot be imported ({type(error).__name__}: {error}); "
            "expected package.module:function, where Python finds the package: install it, "
            "or set PYTHONPATH."
        ) from error
    if not callable(build):
        raise ValueError(
            f"learner {name!r} is a {type(build).__name__}; expected a function that makes "
            "a MetaLearner."
        )
    # What makes a head of its own asks for an encoder or a number of classes. Whether a
    # constructor of the user's predicts before it adapts is not known.
    fixed = not {"encoder", "num_classes"} & parameters(build).keys()
    return Record(build=build, name=name, title=function, start=False, fixed_head=fixed)
