"""One configured client for the Hub: bounded waits, and no secrets in what is shown."""

import re

import httpx2
import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.utils._http import default_client_factory

CONNECT_SECONDS = 30.0
READ_SECONDS = 300.0
"""The stock client waits for ever on a silent server. The Hub itself gives up on a commit after a minute."""

_SECRET = re.compile(r"\bhf_[A-Za-z0-9]{8,}|(?<=Bearer )\S+")


def make_api(endpoint: str | None = None, token: str | None = None, *, xet: bool = True) -> huggingface_hub.HfApi:
    """The stock API with time-outs.

    Args:
        endpoint: The Hub's address; HF_ENDPOINT or the public Hub by default.
        token: A token; HF_TOKEN or the stock login by default.
        xet: Whether large files may go by xet; False sends them by LFS in this whole process.
    """
    huggingface_hub.set_client_factory(_client)
    if not xet:
        constants.HF_HUB_DISABLE_XET = True
    return huggingface_hub.HfApi(endpoint=endpoint, token=token, library_name="hubtool")


def _client() -> httpx2.Client:
    client = default_client_factory()
    client.timeout = httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    return client


def redact(text: str) -> str:
    """`text` without tokens."""
    return _SECRET.sub("*****", text)
