"""The one border to what huggingface_hub and hf_xet promise nobody: no other module touches a private name of theirs.

A new release of either may rename any of it. What is imported here fails at once and by name; what is reached through
an object is listed in `BORROWED`, and a test says which is gone. pyproject.toml bounds the versions.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub._local_folder import (
    LocalDownloadFilePaths,
    get_local_download_paths,
    read_download_metadata,
    write_download_metadata,
)
from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info
from huggingface_hub.utils import _http
from huggingface_hub.utils._http import (
    default_client_factory,
    get_session,
    hf_raise_for_status,
    http_backoff,
    http_stream_backoff,
    parse_ratelimit_headers,
)
from huggingface_hub.utils._runtime import is_xet_available
from huggingface_hub.utils._xet import abort_xet_session, get_xet_session, xet_headers_without_auth

__all__ = [
    "DEFAULT_ENDPOINT",
    "HTTP_LOGGER",
    "LocalDownloadFilePaths",
    "UploadInfo",
    "abort_xet_session",
    "client_factory",
    "default_client_factory",
    "get_local_download_paths",
    "get_session",
    "get_xet_session",
    "auth_headers",
    "hf_raise_for_status",
    "hf_xet",
    "http_backoff",
    "http_stream_backoff",
    "is_xet_available",
    "mark",
    "missing",
    "parse_ratelimit_headers",
    "post_lfs_batch_info",
    "read_download_metadata",
    "write_download_metadata",
    "xet_headers_without_auth",
]

BORROWED = (
    "huggingface_hub.constants:_HF_DEFAULT_ENDPOINT",
    "huggingface_hub:HfApi._build_hf_headers",
    "huggingface_hub.utils._http:_GLOBAL_CLIENT_FACTORY",
    "huggingface_hub:CommitOperationAdd._upload_mode",
    "huggingface_hub:CommitOperationAdd._is_uploaded",
    "huggingface_hub:CommitOperationAdd.as_file",
    "huggingface_hub._local_folder:LocalDownloadFilePaths.incomplete_path",
    "hf_xet:COMPUTE_SHA256",
    "hf_xet:XetConfig.with_config",
    "hf_xet:XetFileInfo",
    "hf_xet:XetSession.new_upload_commit",
    "hf_xet:XetSession.new_download_stream_group",
    "hf_xet:XetUploadCommit.start_upload_file",
    "hf_xet:XetUploadCommit.start_upload_stream",
    "hf_xet:XetUploadCommit.wait_to_finish",
    "hf_xet:XetUploadCommit.abort",
    "hf_xet:XetStreamUpload.write",
    "hf_xet:XetStreamUpload.finish",
    "hf_xet:XetFileUpload.result",
    "hf_xet:GroupProgressReport.total_bytes_completed",
)
"""Names that are reached through an object, as `pkgutil.resolve_name` takes them."""

DEFAULT_ENDPOINT: str = constants._HF_DEFAULT_ENDPOINT
"""The public Hub's address, whatever HF_ENDPOINT says."""

HTTP_LOGGER: str = _http.__name__
"""Where the stock client says that it tries again."""


def missing() -> list[str]:
    """The names of `BORROWED` that the installed versions do not have; those of hf_xet only where it is installed."""
    gone = []
    for name in BORROWED:
        if name.startswith("hf_xet:") and not is_xet_available():
            continue
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            gone.append(name)
    return gone


def auth_headers(api: HfApi) -> Mapping[str, str]:
    """The headers of a request in the name of an API, its token among them."""
    built: Mapping[str, str] = api._build_hf_headers()
    return built


def client_factory() -> object:
    """What makes the stock client's HTTP client in this process; setting it closes the one that is open."""
    return _http._GLOBAL_CLIENT_FACTORY


def mark(addition: CommitOperationAdd, *, large: bool, uploaded: bool = False) -> CommitOperationAdd:
    """The addition, which takes the way that the Hub has chosen for it.

    huggingface_hub 2.4 has no public way to say so: it would ask again, silently leave out what a `.gitignore` in the
    repo names, and send content that the Hub has already.

    Args:
        addition: A file to add.
        large: Whether it goes by LFS or xet, and not in the commit itself.
        uploaded: Whether the Hub has its content.
    """
    addition._upload_mode = "lfs" if large else "regular"
    addition._is_uploaded = uploaded
    return addition


def hf_xet() -> Any:
    """The library that speaks xet. It is loaded when it is needed: not every platform has it."""
    return importlib.import_module("hf_xet")
