"""The owner's endpoint for users, organizations and tokens."""

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubtool.rehearsal.accounts import OrgRole, Role
from hubtool.rehearsal.hub import owners_hub
from hubtool.rehearsal.wire import Nbytes, Refusal, read_json


class NewUser(msgspec.Struct):
    """A user to make or change."""

    name: str
    private_quota: Nbytes | None = None


class NewOrg(msgspec.Struct):
    """An organization to make or change."""

    name: str
    members: dict[str, OrgRole] = {}
    private_quota: Nbytes | None = None


class NewToken(msgspec.Struct):
    """A token to make."""

    user: str
    role: Role


class NewAccounts(msgspec.Struct):
    """Body of the endpoint."""

    users: list[NewUser] = []
    orgs: list[NewOrg] = []
    tokens: list[NewToken] = []


async def add(request: Request) -> Response:
    """The new tokens, in the order they were asked for."""
    accounts = owners_hub(request).accounts
    body = await read_json(request, NewAccounts)
    for user in body.users:
        accounts.add_user(user.name, private_quota=user.private_quota)
    for org in body.orgs:
        accounts.add_org(org.name, org.members, private_quota=org.private_quota)
    for token in body.tokens:
        if accounts.account(token.user) is None:
            raise Refusal(404, f"there is no user {token.user}")
    return JSONResponse({"tokens": [accounts.add_token(token.user, token.role) for token in body.tokens]})


ROUTES = [Route("/rehearsal/accounts", add, methods=["POST"])]
