"""The scripts in eval/ are no package: put them on the path, so that tests import them as modules."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "eval"))
