"""Where Ray's workers look for modules: in this code, and only where the driver looks.

Ray puts the driver's working directory first on their `sys.path`, where the user's own `pipeline.py` or `jobs` would hide
those of this project. `python -m jobs.caption` looks there, but a console script does not.
"""

import os
import site
import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[2])


def worker_path() -> list[str]:
    """Folders to put on the workers' `sys.path`, in reverse order."""
    here = os.path.abspath(os.curdir)
    found = {os.path.abspath(path or os.curdir) for path in sys.path}
    installed = {os.path.realpath(path) for path in (*site.getsitepackages(), site.getusersitepackages())}
    ours = [] if os.path.realpath(_ROOT) in installed else [_ROOT]
    return [*([here] if here in found else []), *ours]
