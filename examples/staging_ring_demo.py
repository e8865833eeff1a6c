"""Stream photographs to the GPU with many coroutines through one small ring, draw them meanwhile, verify every byte.

The same program as `aiostage demo`; its parts are in aiostage/demo/. Try `--help`, or name photographs of your own.
"""

import sys

from aiostage.tools.demo import main

if __name__ == "__main__":
    sys.exit(main())
