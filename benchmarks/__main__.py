"""`python -m benchmarks NAME [options]`."""

from __future__ import annotations

import tyro

from benchmarks.accelerator import Accelerator
from benchmarks.adapt import Adapt
from benchmarks.against import Against
from benchmarks.bandits import Bandits
from benchmarks.calibration import Calibration
from benchmarks.ceiling import Ceiling
from benchmarks.choose import Choose
from benchmarks.chunks import Chunks
from benchmarks.cold_start import ColdStarts
from benchmarks.compiling import Compiling
from benchmarks.continual import ContinualFamilies
from benchmarks.data import Data
from benchmarks.distillation import Students
from benchmarks.domains import Domains
from benchmarks.families import Families
from benchmarks.features import Features
from benchmarks.graphs import Graphs
from benchmarks.growth import Growth
from benchmarks.hyperparameters import Hyperparameters
from benchmarks.labels import Labels
from benchmarks.memory import Memory
from benchmarks.mixed import Mixed
from benchmarks.online import Online
from benchmarks.paired import Paired
from benchmarks.peers import Peers
from benchmarks.places import Places
from benchmarks.recipe import RunRecipe
from benchmarks.rollouts import Rollouts
from benchmarks.routing import Routing
from benchmarks.scaling import Scaling
from benchmarks.streams import Streams
from benchmarks.table import Table
from benchmarks.texts import Texts
from benchmarks.throughput import Throughput
from benchmarks.warm_up import WarmUp
from metalearn.runs import environment

BENCHMARKS = {
    "throughput": Throughput,
    "peers": Peers,
    "accelerator": Accelerator,
    "ceiling": Ceiling,
    "chunks": Chunks,
    "adapt": Adapt,
    "memory": Memory,
    "growth": Growth,
    "compiling": Compiling,
    "scaling": Scaling,
    "data": Data,
    "recipe": RunRecipe,
    "paired": Paired,
    "against": Against,
    "choose": Choose,
    "calibration": Calibration,
    "families": Families,
    "routing": Routing,
    "mixed": Mixed,
    "online": Online,
    "streams": Streams,
    "bandits": Bandits,
    "rollouts": Rollouts,
    "texts": Texts,
    "cold-start": ColdStarts,
    "warm-up": WarmUp,
    "graphs": Graphs,
    "features": Features,
    "domains": Domains,
    "labels": Labels,
    "places": Places,
    "hyperparameters": Hyperparameters,
    "distillation": Students,
    "continual": ContinualFamilies,
    "table": Table,
}


def main() -> None:
    environment.connect()  # cores become devices, as for `metalearn train`
    positional = (tyro.conf.PositionalRequiredArgs,)
    tyro.extras.subcommand_cli_from_dict(BENCHMARKS, config=positional).run_benchmark()


if __name__ == "__main__":
    main()
