"""`python -m tests.mutations`, from the root of the checkout; see `runner`."""

import sys
from pathlib import Path

# Tests, and so the tables, import what they share from the folder `tests`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mutations import runner

if __name__ == "__main__":
    sys.exit(runner.main())
