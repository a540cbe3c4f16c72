"""Whether the weights of a model are available: on this machine, or from a hub that answers.

The hub's client retries for a minute per file, in every actor. A single request reveals the problem sooner.
"""

import glob
import os
from urllib.parse import urlsplit

import open_clip
from huggingface_hub import constants
from huggingface_hub.utils import get_session

from pez.demo import CLIPS
from pez.errors import UserError
from pez.models.names import guides_of
from pez.settings import ModelSettings

_PATIENCE = 10.0  # seconds for the hub to answer
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def check_guides_reachable(settings: ModelSettings) -> None:
    """Check every model that prompts are learned with; see check_reachable."""
    for model, pretrained in guides_of(settings):
        check_reachable(model, pretrained)


def check_reachable(model: str, pretrained: str | None) -> None:
    """Check that a CLIP's weights are on this machine, or that the hub that has them answers.

    Args:
        model: a demo name, an open_clip name, hf-hub:... or local-dir:...
        pretrained: the tag of an open_clip name.

    Raises:
        UserError: neither is the case.
    """
    repository = _repository(model, pretrained)
    if repository is None or constants.HF_HUB_OFFLINE or _is_here(repository):
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception as error:  # its client has used two HTTP libraries
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        host = urlsplit(constants.ENDPOINT).netloc
        raise UserError(
            f"the weights of {model} ({repository}) are not on this machine, and {host} does not answer: {reason}; "
            "check the network, or pass a --pretrained file or --model local-dir:FOLDER"
        ) from error


def _repository(model: str, pretrained: str | None) -> str | None:
    """The repository on the hub; None if the weights come from elsewhere."""
    if model in CLIPS or model.startswith("local-dir:"):
        return None
    if model.startswith("hf-hub:"):
        return model.removeprefix("hf-hub:").partition("@")[0]
    if not pretrained or os.path.exists(pretrained):
        return None
    place = (open_clip.get_pretrained_cfg(model, pretrained) or {}).get("hf_hub", "")
    return place.rpartition("/")[0] or None


def _is_here(repository: str) -> bool:
    folder = os.path.join(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}", "snapshots")
    return any(path.endswith(_WEIGHTS) for path in glob.iglob(os.path.join(glob.escape(folder), "*", "*")))
