"""Stream photographs to the GPU with many coroutines through one small ring, draw them meanwhile, verify every byte.

The same program as `aiostage demo`; its parts are in aiostage/tools/demo/. Try `--help`, or name your own photographs.
"""

import sys

from aiostage.tools.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
