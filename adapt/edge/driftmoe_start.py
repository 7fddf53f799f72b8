"""Makes the folder that this file lies in, inside a bundle, a package, and finds the ``Engine`` there.

``run.py`` runs it; nobody imports it. The package is named after the bundle, so that one process can run several.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parent
NAME = f"bundle_{json.loads((FOLDER.parent / 'bundle.json').read_bytes())['sha256']}"

package = sys.modules.setdefault(NAME, ModuleType(NAME))
package.__path__ = [str(FOLDER)]
Engine = importlib.import_module(f"{NAME}.adapt.edge.driftmoe_engine").Engine
