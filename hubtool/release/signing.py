"""A signature of the published files by OpenSSF Model Signing, with keys of the publisher's own.

The card and its pictures are not signed: they may be regenerated. All else is, the record and the provenance too, and a
file that was added is found: it might be weights.
"""

import importlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hubtool.errors import UsageError, VerificationError
from hubtool.files.whole import STATE_DIR
from hubtool.record import (
    ASSETS_PREFIX,
    CARD_FILE,
    PROVENANCE_FILE,
    RECORD_FILE,
    SIGNATURE_FILE,
    TEST_RESULT_FILE,
    Record,
)

UNSIGNED = (CARD_FILE, ASSETS_PREFIX.rstrip("/"), SIGNATURE_FILE, STATE_DIR, ".gitattributes")
"""What may change without breaking a signature."""


def sign(folder: Path, record: Record, private_key: Path) -> Path:
    """The signature file of a folder, made with an elliptic-curve key (PEM); one that still holds is kept.

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
    if path.is_file() and _holds(folder, private_key):
        return path
    hashing = _hashing(UNSIGNED)
    names = [*record.hashes(), RECORD_FILE, PROVENANCE_FILE, TEST_RESULT_FILE]
    # What is not published has no business in a published file, by its name either.
    hashing.hash = partial(hashing.hash, files_to_hash=[folder / name for name in names if (folder / name).is_file()])
    config.set_hashing_config(hashing).sign(folder, path)
    return path


def _holds(folder: Path, private_key: Path) -> bool:
    """Whether a folder's signature was made with this key, and of these files."""
    serialization = _library("cryptography.hazmat.primitives.serialization")
    key = serialization.load_pem_private_key(private_key.read_bytes(), password=None).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    with TemporaryDirectory() as place:
        public_key = Path(place, "public.pem")
        public_key.write_bytes(key.public_bytes(serialization.Encoding.PEM, form))
        try:
            verify_signature(folder, public_key)
        except VerificationError:
            return False
    return True


def verify_signature(folder: Path, public_key: Path) -> None:
    """Hold every file of a folder but card, pictures and hidden ones against its signature.

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
    hidden = [path.name for path in folder.glob(".*")]
    try:
        config.set_hashing_config(_hashing([*UNSIGNED, *hidden])).verify(folder, path)
    except (ValueError, OSError, _library("cryptography.exceptions").InvalidSignature) as error:
        raise VerificationError(
            "the signature does not hold",
            where=path,
            found=str(error) or "made with another key",
            remedy="fetch the files again, or ask whoever signed them",
        ) from error


def _hashing(ignored: Sequence[str]) -> Any:
    return _library("model_signing.hashing").Config().set_ignored_paths(paths=ignored, ignore_git_paths=True)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        remedy = "pip install 'hubtool[sign]'"
        raise UsageError("cannot sign or check a signature", found=error, remedy=remedy) from error
