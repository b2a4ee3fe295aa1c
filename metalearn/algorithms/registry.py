"""The table of systems: what `metalearn list` and the README say of each learner."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class System:
    """One learner.

    Attributes:
      name: Its constructor in `metalearn`.
      paper: Authors, venue and year.
      good_for: What it is for, in a few words.
      published: A number that its paper or another source prints, and where; empty if we
        have none whose source we could read or that is quoted by a second source.
      result: Stem of the stored result in `benchmarks/results/` that measures it here.
    """

    name: str
    paper: str
    good_for: str
    published: str = ""
    result: str = ""


# Accuracies of "mini" are on mini-ImageNet, 5-way, 1-shot. [P]: read in the paper or in
# its released code; [S]: quoted by a second source.
SYSTEMS = (
    System(
        "maml",
        "Finn et al., ICML 2017",
        "an initialisation that a few steps adapt",
        "mini 48.70 ± 1.84 [S]",
        "omniglot-maml-seed0",
    ),
    System(
        "fomaml",
        "Finn et al., ICML 2017",
        "the same without second derivatives",
        "mini 48.07 ± 1.75 [S]",
        "against-small-fomaml",
    ),
    System(
        "reptile",
        "Nichol et al., arXiv 2018",
        "first order, no query set, long adaptation",
        "mini 47.07 ± 0.26 [S]",
        "omniglot-reptile-seed0",
    ),
    System(
        "anil",
        "Raghu et al., ICLR 2020",
        "features that serve as they are: only the head adapts",
        "mini 46.7 ± 0.4 against their MAML 46.9 ± 0.2 [P]",
        "paired-glyphs-anil-glyphs-maml",
    ),
    System(
        "boil",
        "Oh et al., ICLR 2021",
        "other domains: the body adapts, the head does not",
        "mini 49.65 ± 0.19 against their MAML 48.47 ± 0.26 [P]",
        "against-small-boil",
    ),
    System(
        "meta_sgd",
        "Li et al., arXiv 2017",
        "one step with a learned rate for every weight",
        "mini 50.47 ± 1.87 [S]",
        "paired-glyphs-meta-sgd-glyphs-maml",
    ),
    System(
        "maml_plus_plus",
        "Antoniou et al., ICLR 2019",
        "MAML that trains steadily: loss and rates for every step",
        "mini 52.15 ± 0.26 [S]",
        "against-small20-maml-plus-plus",
    ),
    System(
        "alpha_maml",
        "Behl et al., ICML workshop 2019",
        "no search for the inner and the outer rate",
        "",
        "against-small-alpha-maml-inner_rate=0.1-steps=2000",
    ),
    System(
        "imaml",
        "Rajeswaran et al., NeurIPS 2019",
        "long inner loops in constant memory, any inner optimiser",
        "Omniglot 20-way 1-shot 94.46 ± 0.42 [S]",
        "against-small-imaml",
    ),
    System(
        "cavia",
        "Zintgraf et al., ICML 2019",
        "a small vector that describes the task adapts",
        "mini 47.24 ± 0.65 (32 filters) [S]",
        "against-sinusoid-cavia",
    ),
    System(
        "leo",
        "Rusu et al., ICLR 2019",
        "classifiers on features of a large pre-trained network",
        "mini 61.76 ± 0.08 [P]",
        "against-features-leo",
    ),
    System(
        "meta_curvature",
        "Park & Oliva, NeurIPS 2019",
        "one inner step along a learned curvature",
        "mini 55.73 (MC2+) [S]",
        "against-small-meta-curvature",
    ),
    System(
        "warpgrad",
        "Flennerhag et al., ICLR 2020",
        "long adaptation: warp layers learn from single steps",
        "mini 52.3 ± 0.8 (Warp-MAML) [S]",
        "against-small-warpgrad",
    ),
    System(
        "t_net",
        "Lee & Choi, ICML 2018",
        "a learned metric for the inner gradient",
        "",
        "against-small-t-net",
    ),
    System(
        "mt_net",
        "Lee & Choi, ICML 2018",
        "the same, with a learned choice of what adapts",
        "mini 51.70 ± 1.84 [S]",
        "against-small-mt-net",
    ),
    System(
        "bmg",
        "Flennerhag et al., ICLR 2022",
        "a longer horizon than the steps that are differentiated",
        "",
        "against-small-bmg",
    ),
    System(
        "sharp_maml",
        "Abbas et al., ICML 2022",
        "flat minima, in the inner loop, the outer one or both",
        "",
        "against-small-sharp-maml",
    ),
    System(
        "es_maml",
        "Song et al., ICLR 2020",
        "objectives and adaptation without a derivative, small networks",
        "",
        "against-sinusoid-es-maml",
    ),
    System(
        "llama",
        "Grant et al., ICLR 2018",
        "MAML as empirical Bayes: a Laplace posterior around the adapted weights",
        "mini 49.40 ± 1.83 [S]",
        "calibration-ambiguous-maml",
    ),
    System(
        "platipus",
        "Finn et al., NeurIPS 2018",
        "ambiguous tasks: a Gaussian of initialisations",
        "mini 50.13 ± 1.86 [S]",
        "calibration-ambiguous-maml",
    ),
    System(
        "bmaml",
        "Yoon et al., NeurIPS 2018",
        "ambiguous tasks: particles that sample the posterior",
        "",
        "calibration-ambiguous-maml",
    ),
    System(
        "emaml",
        "baseline of Yoon et al., NeurIPS 2018",
        "an ensemble of MAML learners",
        "",
        "calibration-ambiguous-maml",
    ),
    System(
        "hsml",
        "Yao et al., ICML 2019",
        "tasks of several kinds: a learned tree of clusters gates the start",
        "mini 50.38 [S]",
        "families-10shot",
    ),
    System(
        "mumomaml",
        "after Vuorio et al., NeurIPS 2019",
        "tasks of several kinds: a task embedding gates the start",
        "",
        "families-10shot",
    ),
    System(
        "follow_the_meta_leader",
        "Finn et al., ICML 2019",
        "tasks that arrive one after another: meta-learning on a buffer of them",
        "",
        "online",
    ),
    System(
        "protonet",
        "Snell et al., NeurIPS 2017",
        "class means in a learned space; any number of ways",
        "",
        "omniglot-protonet-seed0",
    ),
    System("fine_tune", "Chen et al., ICLR 2019", "baseline: a new head on joint training"),
    System("no_adaptation", "", "baseline: the floor"),
)
