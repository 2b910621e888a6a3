"""`python -m vitas`, and so `accelerate launch -m vitas RECIPE`: the command `vitas`."""

import sys

from vitas.cli import main

if __name__ == "__main__":
    sys.exit(main())
