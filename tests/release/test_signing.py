"""Signatures by OpenSSF Model Signing: they hold through a new card, and for no other bytes. They need `sign`."""

import base64
import json
from pathlib import Path

import pytest

from hubtool.errors import UsageError, VerificationError
from hubtool.record import Record
from hubtool.release.signing import sign, verify_signature
from tests.checkpoints import copied, edit_json
from tests.fixtures import CommandLine, Conversions, Samples

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
    folder, _ = signed
    (folder / "README.md").write_text("# Another\n")
    (folder / ".gitattributes").write_text("* lfs\n")
    verify_signature(folder, keys[1])


def test_a_signature_holds_for_a_folder_named_from_where_one_stands(
    signed: tuple[Path, Record], keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = signed
    monkeypatch.chdir(folder.parent)
    verify_signature(Path(folder.name), keys[1])
    assert (folder / "model.sig").is_file()


def test_a_changed_file_is_found(signed: tuple[Path, Record], keys: tuple[Path, Path]) -> None:
    folder, _ = signed
    edit_json(folder / "config.json", lambda config: config.update(sliding_window=1))
    with pytest.raises(VerificationError, match="config.json"):
        verify_signature(folder, keys[1])


@pytest.mark.parametrize("name", ["hubtool.json", "provenance.intoto.json"])
def test_a_changed_record_or_provenance_is_found(
    name: str, signed: tuple[Path, Record], keys: tuple[Path, Path]
) -> None:
    folder, _ = signed
    (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
    with pytest.raises(VerificationError, match=name):
        verify_signature(folder, keys[1])


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "adapters/adapter.safetensors"])
def test_weights_that_were_added_are_found(name: str, signed: tuple[Path, Record], keys: tuple[Path, Path]) -> None:
    folder, _ = signed
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(VerificationError, match=name):
        verify_signature(folder, keys[1])


def test_a_signature_names_no_file_that_is_not_published(
    converted: Conversions, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    made = converted("mini", "mixed_3_6")
    folder = copied(made.folder, tmp_path / "folder")
    (folder / "secret-plans.txt").write_text("secret")
    signature = json.loads(sign(folder, made.record, keys[0]).read_bytes())
    payload = base64.b64decode(signature["dsseEnvelope"]["payload"]).decode()
    assert "secret" not in payload
    assert "hubtool.json" in payload
    (folder / "secret-plans.txt").unlink()
    verify_signature(folder, keys[1])


def test_a_signature_that_holds_is_kept(signed: tuple[Path, Record], keys: tuple[Path, Path], tmp_path: Path) -> None:
    folder, record = signed
    before = (folder / "model.sig").read_bytes()
    assert sign(folder, record, keys[0]).read_bytes() == before
    other = make_keys(tmp_path, "other")
    assert sign(folder, record, other[0]).read_bytes() != before
    verify_signature(folder, other[1])


# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_what_is_published_signed_holds(
    sample: Samples, keys: tuple[Path, Path], hubtool: CommandLine, tmp_path: Path, stock_client: None
) -> None:
    out = tmp_path / "out"
    arguments = (
        "publish",
        sample("mini"),
        "--recipe",
        "native",
        "--validate",
        "none",
        "--to",
        "someone/V4",
        "--out",
        out,
        "--rehearse",
    )
    assert hubtool(*arguments, "--sign", keys[0]).code == 0
    verify_signature(out, keys[1])
    again = hubtool(*arguments, "--sign", keys[0], "--json")
    assert (again.code, again.document["changed"]) == (0, False)


def test_another_key_is_refused(signed: tuple[Path, Record], tmp_path: Path) -> None:
    folder, _ = signed
    with pytest.raises(VerificationError, match="does not hold"):
        verify_signature(folder, make_keys(tmp_path, "other")[1])


def test_a_folder_without_signature_is_not_signed(converted: Conversions, keys: tuple[Path, Path]) -> None:
    made = converted("mini", "mixed_3_6")
    with pytest.raises(VerificationError, match="not signed"):
        verify_signature(made.folder, keys[1])


def test_a_file_that_is_no_key_is_refused(signed: tuple[Path, Record], tmp_path: Path) -> None:
    folder, _ = signed
    (tmp_path / "x").write_text("no key")
    with pytest.raises(UsageError, match="key cannot be used"):
        verify_signature(folder, tmp_path / "x")
