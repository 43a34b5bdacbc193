"""`python -m kani_lite`: the program `kani-lite`."""

import sys

from kani_lite.terminal.cli import main

if __name__ == "__main__":
    sys.exit(main())
