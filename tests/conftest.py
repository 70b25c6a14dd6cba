"""Shared by all tests: this folder is on the import path, so that any test can `import fakes`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
