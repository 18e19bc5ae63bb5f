"""Connect the clients of this process, imported without a network, to a Hub of the tests."""

import time
from types import SimpleNamespace

import huggingface_hub
import pytest
import transformers
from huggingface_hub import constants, file_download, hf_api
from huggingface_hub.utils import _http

from tests.hub.server import WRITE_TOKEN, HubServer


def connect(
    hub: HubServer, patch: pytest.MonkeyPatch, home: object, token: str | None = WRITE_TOKEN
) -> None:
    """Send all requests to `hub` until the patch is undone; the clients retry without waiting."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_TOKEN_PATH"):
        patch.delenv(name, raising=False)
    if token is not None:
        patch.setenv("HF_TOKEN", token)
    values = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": f"{home}/hub",
        "HF_TOKEN_PATH": f"{home}/token",
    }
    for name, value in values.items():
        patch.setattr(constants, name, value)
    patch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
    api = hf_api.HfApi()
    for module in (huggingface_hub, transformers.trainer):
        for name in ("create_repo", "upload_folder"):
            if hasattr(module, name):  # made at import, for the endpoint of then
                patch.setattr(module, name, getattr(api, name))
    hasty = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    for module in (_http, file_download):
        patch.setattr(module, "time", hasty)
    huggingface_hub.close_session()
