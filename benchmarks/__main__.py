"""`python -m benchmarks NAME [options]`."""

from __future__ import annotations

import tyro

from benchmarks.paired import Paired
from benchmarks.peers import Peers
from benchmarks.recipe import RunRecipe
from benchmarks.table import Table


def main() -> None:
    command = tyro.extras.subcommand_cli_from_dict(
        {"peers": Peers, "recipe": RunRecipe, "paired": Paired, "table": Table}
    )
    command.run_benchmark()


if __name__ == "__main__":
    main()
