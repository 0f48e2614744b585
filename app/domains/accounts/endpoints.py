"""REST routes of accounts: sign-in, guests, who am I, staff, API keys."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.core.caller import ANYWHERE, Caller
from app.core.errors import AppError
from app.core.registry import Domain
from app.domains.accounts import rules, service, store
from app.domains.accounts.rules import Grant
from app.domains.accounts.service import Member, Token
from app.domains.accounts.tables import ApiKey
from app.domains.accounts.tokens import end_sign_ins, refuse_ended
from app.protocol.codes import BAD_REQUEST, UNAUTHORIZED
from app.rest.access import CallerDep, EnginesDep, public, require
from app.rest.pages import CursorParam, LimitParam, Page, decode_cursor, encode_cursor

router = APIRouter(prefix="/api/v1", tags=["accounts"])

NO_STORE = {"Cache-Control": "no-store"}  # answers that hold a secret are kept nowhere, not even for a repeated Idempotency-Key

Name = Annotated[str, Field(min_length=1, max_length=rules.NAME_CHARS_MAX)]
Password = Annotated[str, Field(min_length=1, max_length=service.PASSWORD_CHARS_MAX)]
Login = Annotated[str, Field(min_length=1, max_length=120, pattern=r"^[^\s\x00]+$")]
RoleText = Annotated[str, Field(max_length=100, description="a role, or `role@room` for one room", examples=["host@k3m97q2x0a"])]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SignIn(Body):
    login: Login = Field(examples=["lin"])
    password: Password = Field(examples=["tea-and-honey-2026"])


class GuestIn(Body):
    name: str = Field("", max_length=40, examples=["Mei"])


class TokenOut(BaseModel):
    token: str = Field(description="send it as `Authorization: Bearer <token>`, and in the websocket's connect command")
    subject: str = Field(examples=["guest-4h8s0c2p7x"])
    name: str = Field(examples=["Mei"])
    expires_in_s: int = Field(examples=[7200])


class MeOut(BaseModel):
    id: str = Field(examples=["staff-4h8s0c2p7x"])
    name: str = Field(examples=["Lin"])
    kind: str = Field(description="viewer, guest, staff or api_key", examples=["staff"])
    roles: list[str] = Field(examples=[["host@k3m97q2x0a"]])
    rights: dict[str, list[str]] = Field(description="right -> rooms; `*` is all rooms", examples=[{"session.run": ["k3m97q2x0a"]}])
    rooms: list[str] | None = Field(None, description="when set, the token is good for these rooms alone")
    expires_at_s: int | None = Field(None, description="seconds since 1970")


class StaffIn(Body):
    login: Login = Field(examples=["lin"])
    password: Password = Field(description=f"at least {service.PASSWORD_CHARS_MIN} characters", examples=["tea-and-honey-2026"])
    name: Name = Field(examples=["Lin"])
    roles: list[RoleText] = Field(default_factory=list, max_length=rules.ROLES_MAX, examples=[["host@k3m97q2x0a"]])


class StaffPatch(Body):
    """What is left out stays."""

    name: Name | None = None
    password: Password | None = None
    roles: list[RoleText] | None = Field(None, max_length=rules.ROLES_MAX, description="the whole new list")


class StaffOut(BaseModel):
    id: str = Field(examples=["staff-4h8s0c2p7x"])
    login: str = Field(examples=["lin"])
    name: str = Field(examples=["Lin"])
    roles: list[str] = Field(examples=[["host@k3m97q2x0a"]])
    created_at: datetime


class ApiKeyIn(Body):
    name: Name = Field(examples=["shop backend"])
    rights: list[str] = Field(min_length=1, max_length=64, examples=[["order.view", "order.fulfil"]])
    rooms: list[Annotated[str, Field(max_length=64)]] | None = Field(None, max_length=rules.ROOMS_MAX, description="null: all rooms")


class ApiKeyOut(BaseModel):
    id: str
    name: str = Field(examples=["shop backend"])
    rights: list[str] = Field(examples=[["order.view"]])
    rooms: list[str] | None = None
    created_by: str = Field(examples=["staff-4h8s0c2p7x"])
    created_at: datetime
    last_used_at: datetime | None = Field(None, description="to the minute")
    revoked_at: datetime | None = None


class ApiKeyMade(ApiKeyOut):
    key: str = Field(description="shown this once", examples=["jsk_4h8s0c2p7x_0f3c"])


def _address(request: Request) -> str:
    return request.client.host if request.client else "unknown"


@router.post("/sign-in", summary="Sign in as a member of the team")
@public
async def sign_in(body: SignIn, request: Request, response: Response, engines: EnginesDep) -> TokenOut:
    response.headers.update(NO_STORE)
    return _token_out(await service.sign_in(engines, login=body.login, password=body.password, address=_address(request)))


@router.post("/guests", status_code=201, summary="Get a guest's token")
@public
async def admit_guest(request: Request, response: Response, engines: EnginesDep, body: GuestIn | None = None) -> TokenOut:
    response.headers.update(NO_STORE)
    return _token_out(await service.admit_guest(engines, name=body.name if body else "", address=_address(request)))


@router.get("/me", summary="Who am I, and what may I do where")
@public
async def me(caller: CallerDep) -> MeOut:
    if not caller.id:
        raise AppError(UNAUTHORIZED, "sign in, or send a token as `Authorization: Bearer ...`")
    return MeOut(
        id=caller.id,
        name=caller.name,
        kind=caller.kind,
        roles=sorted(caller.roles),
        rights={right: sorted(scope) for right, scope in sorted(caller.grants.items())},
        rooms=None if caller.rooms is None else sorted(caller.rooms),
        expires_at_s=caller.expires_at_s,
    )


@router.get("/staff", summary="List the team")
async def list_staff(
    engines: EnginesDep, caller: Annotated[Caller, require("staff.manage")], cursor: CursorParam = "", limit: LimitParam = 50
) -> Page[StaffOut]:
    after = decode_cursor(cursor, 1)
    async with engines.sql.read() as session:
        rows = await store.list_staff(session, after_login=str(after[0]) if after else "", limit=limit + 1)
        grants = await store.list_grants(session, [row.id for row in rows])
    shown = rows[:limit]
    items = [_staff_out(Member(row, grants[row.id])) for row in shown if _sees(caller, grants[row.id])]
    return Page(items=items, next_cursor=encode_cursor(shown[-1].login) if len(rows) > limit else "")


def _sees(caller: Caller, grants: list[Grant]) -> bool:
    """Who manages one room's team is shown that room's people alone."""
    rooms = caller.rooms_with("staff.manage")
    return rooms is None or any(room_id in rooms for _, room_id in grants)


@router.post("/staff", status_code=201, summary="Add a member to the team")
async def create_staff(body: StaffIn, engines: EnginesDep, caller: Annotated[Caller, require("staff.manage")]) -> StaffOut:
    grants = _parse_roles(body.roles)
    service.check_may_grant(caller, grants)
    _check_scope(caller, grants)
    password_hash = await service.hash_password(body.password)
    async with engines.work() as work:
        staff = await service.insert_staff(work, login=body.login, password_hash=password_hash, name=body.name, grants=grants)
        await work.audit(ANYWHERE, caller.id, "staff.added", staff.id, login=staff.login, roles=body.roles)
    return _staff_out(Member(staff, list(dict.fromkeys(grants))))


@router.patch("/staff/{staff_id}", summary="Change a member's name, password or roles")
async def change_staff(
    staff_id: str, body: StaffPatch, engines: EnginesDep, caller: Annotated[Caller, require("staff.manage")]
) -> StaffOut:
    grants = None if body.roles is None else _parse_roles(body.roles)
    if grants is not None:
        service.check_may_grant(caller, grants)
        _check_scope(caller, grants)
    password_hash = None if body.password is None else await service.hash_password(body.password)
    async with engines.work() as work:
        member = await service.fetch_member(work, caller, staff_id)
        _check_scope(caller, member.grants)
        member.staff.name = body.name or member.staff.name
        member.staff.password_hash = password_hash or member.staff.password_hash
        if grants is not None:
            member = await service.change_grants(work, member, grants)
        changed = sorted(body.model_fields_set)
        await work.audit(ANYWHERE, caller.id, "staff.changed", staff_id, changed=changed, roles=body.roles)
    if grants is not None or password_hash is not None:
        await end_sign_ins(engines, staff_id)
    return _staff_out(member)


@router.delete("/staff/{staff_id}", status_code=204, summary="Remove a member from the team")
async def remove_staff(staff_id: str, engines: EnginesDep, caller: Annotated[Caller, require("staff.manage")]) -> None:
    async with engines.work() as work:
        member = await service.fetch_member(work, caller, staff_id)
        _check_scope(caller, member.grants)
        await service.remove_staff(work, member)
        await work.audit(ANYWHERE, caller.id, "staff.removed", staff_id, login=member.staff.login)
    await end_sign_ins(engines, staff_id)


@router.post("/staff/{staff_id}/sign-out", status_code=204, summary="End all sign-ins of a member, for instance after a phone was lost")
async def sign_out_staff(staff_id: str, engines: EnginesDep, caller: Annotated[Caller, require("staff.manage")]) -> None:
    async with engines.work() as work:
        member = await service.fetch_member(work, caller, staff_id)
        _check_scope(caller, member.grants)
        await work.audit(ANYWHERE, caller.id, "staff.signed_out", staff_id, login=member.staff.login)
    await end_sign_ins(engines, staff_id)


def _check_scope(caller: Caller, grants: list[Grant]) -> None:
    """A member without any role belongs to no room: only who manages the team everywhere may touch him."""
    if not grants:
        service.check_right_everywhere(caller, "staff.manage")
    for _, room_id in grants:
        service.check_right_in(caller, "staff.manage", room_id)


@router.get("/api-keys", summary="List API keys")
async def list_api_keys(
    engines: EnginesDep, caller: Annotated[Caller, require("key.manage")], cursor: CursorParam = "", limit: LimitParam = 50
) -> Page[ApiKeyOut]:
    service.check_right_everywhere(caller, "key.manage")
    after = decode_cursor(cursor, 1)
    async with engines.sql.read() as session:
        rows = await store.list_api_keys(session, after_id=str(after[0]) if after else "", limit=limit + 1)
    items = [ApiKeyOut.model_validate(row, from_attributes=True) for row in rows[:limit]]
    return Page(items=items, next_cursor=encode_cursor(items[-1].id) if len(rows) > limit else "")


@router.post("/api-keys", status_code=201, summary="Make an API key; the answer shows it once")
async def create_api_key(
    body: ApiKeyIn, response: Response, engines: EnginesDep, caller: Annotated[Caller, require("key.manage")]
) -> ApiKeyMade:
    service.check_right_everywhere(caller, "key.manage")
    async with engines.work() as work:
        row, key = await service.create_api_key(work, caller, name=body.name, rights=body.rights, rooms=body.rooms)
        await work.audit(ANYWHERE, caller.id, "api_key.made", row.id, name=row.name, rights=row.rights, rooms=row.rooms)
    response.headers.update(NO_STORE)
    return _api_key_made(row, key)


@router.delete("/api-keys/{key_id}", status_code=204, summary="Revoke an API key, at once and for good")
async def revoke_api_key(key_id: str, engines: EnginesDep, caller: Annotated[Caller, require("key.manage")]) -> None:
    service.check_right_everywhere(caller, "key.manage")
    async with engines.work() as work:
        await service.revoke_api_key(work, key_id)
        await work.audit(ANYWHERE, caller.id, "api_key.revoked", key_id)


def _parse_roles(texts: list[str]) -> list[Grant]:
    grants = [rules.parse_grant(text) for text in texts]
    bad = [text for text, grant in zip(texts, grants, strict=True) if grant is None]
    if bad:
        raise AppError(BAD_REQUEST, f"role {bad[0]!r}: one of {', '.join(sorted(rules.ROLES))}, alone or as `role@room`")
    return [grant for grant in grants if grant is not None]


def _token_out(token: Token) -> TokenOut:
    return TokenOut(token=token.token, subject=token.subject, name=token.name, expires_in_s=token.expires_in_s)


def _staff_out(member: Member) -> StaffOut:
    staff = member.staff
    roles = [rules.grant_text(grant) for grant in member.grants]
    return StaffOut(id=staff.id, login=staff.login, name=staff.name, roles=roles, created_at=staff.created_at)


def _api_key_made(row: ApiKey, key: str) -> ApiKeyMade:
    return ApiKeyMade(**ApiKeyOut.model_validate(row, from_attributes=True).model_dump(), key=key)


DOMAIN = Domain(
    name="accounts",
    rights={"staff.manage": "add, change and remove members of the team", "key.manage": "make and revoke API keys"},
    routers=(router,),
    admission=(refuse_ended,),
)
