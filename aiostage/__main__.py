"""`python -m aiostage`: the command line, where `aiostage` itself is not on the PATH."""

import sys

from aiostage.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
