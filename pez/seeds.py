"""The one recipe for random starts: a digest of the seed, the key and the restart."""

import hashlib

import torch


def generator_for(seed: int, key: str, restart: int) -> torch.Generator:
    """A CPU generator that depends on its arguments only."""
    digest = hashlib.sha256(f"{seed}|{restart}|{key}".encode("utf-8", "surrogateescape")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
