"""`python -m planner`: see `planner.recipe.cli`."""

import sys

from planner.recipe.cli import main

if __name__ == "__main__":
    sys.exit(main())
