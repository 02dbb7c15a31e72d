"""`python -m srpo_jax` is `srpo`."""

import sys

from srpo_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
