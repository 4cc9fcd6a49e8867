"""Who may do what: users, organizations and access tokens of the rehearsal Hub, kept in accounts.json.

token           the owner's token, readable by its owner only
secret          signs upload addresses
accounts.json   users, organizations and the sha256 of every token
"""

import base64
import hashlib
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from hubtool.rehearsal import disk
from hubtool.rehearsal.repos import Repo
from hubtool.rehearsal.wire import Refusal

OWNER = "rehearsal"
"""The user made at the first start; may write in every namespace."""

Role = Literal["read", "write"]
OrgRole = Literal["read", "write", "admin"]


class Account(msgspec.Struct):
    """A user or an organization.

    Attributes:
        kind: Which of the two.
        members: For an organization, user name -> role.
        private_quota: Bytes that its private repos may hold together; None for no limit.
    """

    kind: Literal["user", "org"]
    members: dict[str, OrgRole] = {}
    private_quota: int | None = None


class Token(msgspec.Struct, frozen=True):
    """An access token: whose it is and what it allows."""

    user: str
    role: Role
    created: datetime


class Book(msgspec.Struct):
    """What accounts.json holds; tokens by the sha256 of their text."""

    accounts: dict[str, Account]
    tokens: dict[str, Token]


class Accounts:
    """The accounts kept in one folder; made with the owner and the owner's token if absent."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "accounts.json"
        if not self._file.is_file():
            self._start(folder)
        self._book = disk.read(self._file, Book)
        self.owner_token = (folder / "token").read_text().strip()
        self.secret = bytes.fromhex((folder / "secret").read_text())

    def _start(self, folder: Path) -> None:
        token = f"hf_{secrets.token_hex(17)}"
        disk.replace(folder / "token", f"{token}\n".encode(), mode=0o600)
        disk.replace(folder / "secret", secrets.token_hex(32).encode(), mode=0o600)
        book = Book({OWNER: Account("user")}, {_digest(token): Token(OWNER, "write", datetime.now(UTC))})
        disk.write(self._file, book, mode=0o600)

    def add_user(self, name: str, *, private_quota: int | None = None) -> None:
        """Makes a user, or changes the quota of one."""
        self._book.accounts[name] = Account("user", private_quota=private_quota)
        self._save()

    def add_org(self, name: str, members: dict[str, OrgRole], *, private_quota: int | None = None) -> None:
        """Makes an organization, or replaces its members and quota."""
        self._book.accounts[name] = Account("org", dict(members), private_quota)
        self._save()

    def add_token(self, user: str, role: Role) -> str:
        """A new token of a user."""
        token = f"hf_{secrets.token_hex(17)}"
        self._book.tokens[_digest(token)] = Token(user, role, datetime.now(UTC))
        self._save()
        return token

    def revoke(self, token: str) -> None:
        """Makes a token invalid."""
        self._book.tokens.pop(_digest(token), None)
        self._save()

    def identify(self, authorization: str) -> Token | None:
        """Whose token an Authorization header carries, None if it is empty.

        Raises:
            Refusal: 401, the token is not one of ours.
        """
        if not authorization:
            return None
        scheme, _, credentials = authorization.partition(" ")
        found = self._book.tokens.get(_digest(_token_in(scheme.lower(), credentials)))
        if found is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return found

    def account(self, name: str) -> Account | None:
        """A user or organization."""
        return self._book.accounts.get(name)

    def orgs_of(self, user: str) -> dict[str, OrgRole]:
        """The organizations a user belongs to, and the role there."""
        accounts = self._book.accounts.items()
        if user == OWNER:
            return {name: "admin" for name, account in accounts if account.kind == "org"}
        return {name: account.members[user] for name, account in accounts if user in account.members}

    def belongs_to(self, token: Token, namespace: str) -> bool:
        """Whether a namespace is that of the token's holder, or of an organization of theirs."""
        return self._role_in(token.user, namespace) is not None

    def may_see(self, token: Token | None, namespace: str, *, private: bool) -> bool:
        """Whether something of a namespace exists for the holder of this token."""
        return not private or (token is not None and self.belongs_to(token, namespace))

    def may_read(self, token: Token | None, repo: Repo) -> bool:
        """Whether the repo exists for the holder of this token."""
        return self.may_see(token, repo.namespace, private=repo.settings.private)

    def may_write(self, token: Token, namespace: str) -> bool:
        """Whether the holder of this token may create and change repos in a namespace."""
        return token.role == "write" and self._role_in(token.user, namespace) not in (None, "read")

    def _role_in(self, user: str, namespace: str) -> OrgRole | None:
        if user in (OWNER, namespace):
            return "admin"
        return self.orgs_of(user).get(namespace)

    def _save(self) -> None:
        disk.write(self._file, self._book, mode=0o600)


def _token_in(scheme: str, credentials: str) -> str:
    """The token, which a browser sends as the password of a name that does not matter."""
    if scheme != "basic":
        return credentials
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
