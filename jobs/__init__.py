"""The commands."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, see pez/__init__.py
