"""A signature of the published files by OpenSSF Model Signing, with keys of the publisher's own.

What is made from the record, the card and its pictures say, is not signed: it may be made anew. Its provenance and the
record name every signed file's hash anyway.
"""

import importlib
from pathlib import Path
from typing import Any

from hubtool.errors import UsageError, VerificationError
from hubtool.record import SIGNATURE_FILE, Record


def sign(folder: Path, record: Record, private_key: Path) -> Path:
    """The signature file of a folder's recorded files, made with an elliptic-curve key (PEM).

    Raises:
        UsageError: The extra `sign` is not installed, or the key cannot be used.
    """
    folder = folder.resolve()
    signing = _library("model_signing.signing")
    path = folder / SIGNATURE_FILE
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    except (OSError, ValueError) as error:
        raise UsageError("key cannot be used", where=private_key, found=error, remedy="give a private key") from error
    config.set_hashing_config(_hashing(folder, record)).sign(folder, path)
    return path


def verify_signature(folder: Path, record: Record, public_key: Path) -> None:
    """Hold a folder's recorded files against its signature.

    Raises:
        UsageError: The extra `sign` is not installed, or the key cannot be used.
        VerificationError: There is no signature, it was made with another key, or a file is another.
    """
    folder = folder.resolve()
    verifying = _library("model_signing.verifying")
    path = folder / SIGNATURE_FILE
    if not path.is_file():
        raise VerificationError("not signed", where=folder, expected=SIGNATURE_FILE)
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError) as error:
        raise UsageError("key cannot be used", where=public_key, found=error, remedy="give a public key") from error
    try:
        config.set_hashing_config(_hashing(folder, record)).verify(folder, path)
    except (ValueError, OSError, _library("cryptography.exceptions").InvalidSignature) as error:
        raise VerificationError(
            "the signature does not hold",
            where=path,
            found=str(error) or "made with another key",
            remedy="fetch the files again, or ask whoever signed them",
        ) from error


def _hashing(folder: Path, record: Record) -> Any:
    names = record.hashes()
    ignored = [
        path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).as_posix() not in names
    ]
    return _library("model_signing.hashing").Config().set_ignored_paths(paths=ignored, ignore_git_paths=True)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        remedy = "pip install 'hubtool[sign]'"
        raise UsageError("cannot sign or check a signature", found=error, remedy=remedy) from error
