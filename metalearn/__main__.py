"""`python -m metalearn`."""

import sys

from metalearn.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
