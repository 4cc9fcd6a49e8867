"""Signatures by OpenSSF Model Signing: they hold through a new card, and for no other bytes. They need `sign`."""

from pathlib import Path

import pytest

from hubtool.errors import UsageError, VerificationError
from hubtool.record import Record
from hubtool.signing import sign, verify_signature
from tests.checkpoints import copied, edit_json
from tests.fixtures import Conversions

pytest.importorskip("model_signing.signing")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private and a public key."""
    return make_keys(tmp_path, "mine")


def make_keys(folder: Path, name: str) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture
def signed(converted: Conversions, tmp_path: Path, keys: tuple[Path, Path]) -> tuple[Path, Record]:
    """A signed folder."""
    made = converted("mini", "mixed_3_6")
    folder = copied(made.folder, tmp_path / "signed")
    sign(folder, made.record, keys[0])
    return folder, made.record


def test_a_signature_holds_through_a_new_card(signed: tuple[Path, Record], keys: tuple[Path, Path]) -> None:
    folder, record = signed
    (folder / "README.md").write_text("# Another\n")
    (folder / ".gitattributes").write_text("* lfs\n")
    verify_signature(folder, record, keys[1])


def test_a_signature_holds_for_a_folder_named_from_where_one_stands(
    signed: tuple[Path, Record], keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, record = signed
    monkeypatch.chdir(folder.parent)
    verify_signature(Path(folder.name), record, keys[1])
    assert (folder / "model.sig").is_file()


def test_a_changed_file_is_found(signed: tuple[Path, Record], keys: tuple[Path, Path]) -> None:
    folder, record = signed
    edit_json(folder / "config.json", lambda config: config.update(sliding_window=1))
    with pytest.raises(VerificationError, match="config.json"):
        verify_signature(folder, record, keys[1])


def test_another_key_is_refused(signed: tuple[Path, Record], tmp_path: Path) -> None:
    folder, record = signed
    with pytest.raises(VerificationError, match="does not hold"):
        verify_signature(folder, record, make_keys(tmp_path, "other")[1])


def test_a_folder_without_signature_is_not_signed(converted: Conversions, keys: tuple[Path, Path]) -> None:
    made = converted("mini", "mixed_3_6")
    with pytest.raises(VerificationError, match="not signed"):
        verify_signature(made.folder, made.record, keys[1])


def test_a_file_that_is_no_key_is_refused(signed: tuple[Path, Record], tmp_path: Path) -> None:
    folder, record = signed
    (tmp_path / "x").write_text("no key")
    with pytest.raises(UsageError, match="key cannot be used"):
        verify_signature(folder, record, tmp_path / "x")
