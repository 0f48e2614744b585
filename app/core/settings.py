"""Every setting of every process, with its unit in its name. Read from the environment once, at the composition root.

The engines' addresses have the names that hosting platforms use (`REDIS_URL`, `DATABASE_URL`); all else starts with `JISHI_`.
"""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.core.errors import SetupError

DEMO_SECRET = "jishi-demo-secret-change-me-before-you-go-live"  # noqa: S105 - published on purpose; production refuses it
SECRET_BYTES_MIN = 32
COMPANY_ALGORITHMS = ("RS256", "ES256", "EdDSA")  # asymmetric only: a published key must never be able to sign

Positive = Annotated[int, Field(gt=0)]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="JISHI_", populate_by_name=True, extra="ignore")

    # Where things are
    environment: Literal["development", "production"] = "production"
    redis_url: str = Field(
        default="", validation_alias=AliasChoices("REDIS_URL", "redis_url"), description="role `sales`: stock, holds, orders"
    )
    fanout_redis_url: str = Field(
        default="",
        validation_alias=AliasChoices("FANOUT_REDIS_URL", "fanout_redis_url"),
        description="role `fan-out`; empty: the same engine",
    )
    database_url: str = Field(default="", validation_alias=AliasChoices("DATABASE_URL", "database_url"))
    data_dir: Path = Path(".jishi")
    host: str = "127.0.0.1"
    port: int = 8000
    public_url: str = Field(default="", description="how the outside reaches this product; empty: http://host:port")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    # Tokens and people
    token_secret: SecretStr = SecretStr(DEMO_SECRET)
    token_ttl_s: Positive = 12 * 3600
    guest_token_ttl_s: Positive = 2 * 3600
    jwks_url: str = Field(default="", description="public keys of the company's backend, which signs its users' tokens; empty: off")
    jwks_algorithms: str = Field(default=",".join(COMPANY_ALGORITHMS), description="comma-separated; what those keys may sign with")
    jwks_refresh_s: Positive = 300
    jwks_timeout_s: Annotated[int, Field(gt=0, le=4)] = 3  # clients give a command up after 5 s
    jwks_keys_max: Positive = 32
    token_issuer: str = Field(default="", description="`iss` that a token signed with a JWKS key must have; empty: any")
    token_audience: str = Field(default="", description="`aud` that a token signed with a JWKS key must have; empty: any")
    guests_allowed: bool = True
    guest_rights: str = Field(
        default="room.watch,chat.send,inventory.reserve,order.place", description="comma-separated; draws and envelopes need a known viewer"
    )
    guests_per_address_per_min: Positive = 60
    sign_in_attempts_per_min: Positive = 10
    currency: str = "CNY"

    # The gateway
    allowed_origins: str = Field(
        default="", description="comma-separated; empty: same host only, `*`: all. Clients without an Origin header pass"
    )
    ping_interval_s: Positive = 25
    pong_timeout_s: Positive = 10
    connect_timeout_s: Positive = 15
    message_bytes_max: Positive = 64 * 1024
    channel_bytes_max: Positive = 255
    channels_per_client_max: Positive = 128
    connections_max: Positive = 20_000
    commands_per_s_max: Positive = 50
    errors_per_connection_max: Positive = 50
    sweep_ms: Positive = 50
    sweep_ms_max: Positive = 125
    sweep_share_max: Annotated[float, Field(gt=0)] = Field(
        default=0.14, description="of a core: a room whose chat sweeps take more has longer windows, up to `sweep_ms_max`"
    )
    stage_sweep_ms: Positive = 10
    pulse_wait_ms: Annotated[int, Field(ge=0)] = Field(default=250, description="for something that a reading can travel with")
    chat_gather_ms: Positive = Field(default=12, description="lines of a busy chat that go to the nodes together")
    sweep_slice: Positive = 500
    send_buffer_shed_bytes: Positive = 64 * 1024
    send_buffer_bytes_max: Positive = 1024 * 1024
    send_stalled_s_max: Positive = 10
    connections_per_viewer_max: Positive = Field(default=16, description="of one viewer on one node; one more is closed for good")
    method_rates_factor: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="times what the reference states for each method: calls a second of one viewer on one node"
    )
    head_bytes_max: Positive = 64 * 1024  # of an HTTP request, before its body
    close_grace_s: Positive = 5  # for a client that does not answer a close frame: then its socket is dropped
    joins_per_s: Positive = 2_000
    drain_s: float = 30.0
    refresh_grace_s: Positive = Field(default=25, description="SDKs refresh when the token expires, not before; then close 3005")
    position_check_s: Positive = 40
    presence_ttl_s: Positive = Field(default=15, description="how long a node that died is still counted")
    bus_silence_s: Annotated[float, Field(gt=0)] = Field(
        default=5.0, description="then the engine is asked for a sign of life; none within as long again: the line is dead"
    )
    bus_lost_s_max: Annotated[float, Field(ge=0)] = Field(
        default=30.0,
        description="a node cut off from the engine for longer sends its viewers to other nodes (3011, over `drain_s`); 0: never",
    )
    rechecks_per_s: Positive = Field(default=2_000, description="memberships looked at again after the engine was away, for lost bans")

    # Streams
    stage_history_events_max: Positive = 300
    stage_history_ttl_s: Positive = 300
    chat_history_messages_max: Positive = 50
    chat_history_ttl_s: Positive = 3600

    # Chat
    chat_shown_per_s: Positive = 20
    chat_text_chars_max: Positive = 300
    chat_per_viewer_per_10_s: Positive = 10
    chat_archive_batch_max: Positive = 500

    # Holds and orders
    hold_ttl_s: Positive = 300
    payment_ttl_s: Positive = 900
    group_commit_batch_max: Positive = 256
    group_commit_queue_max: Positive = 20_000
    waitlist_length_max: Annotated[int, Field(ge=0)] = Field(default=1_000, description="viewers who may wait for one offer")
    expiry_batch_max: Positive = 500
    intake_batch_max: Positive = 500
    outbox_entries_max: Positive = 1_000_000
    outbox_attempts_max: Positive = 8
    room_lease_s: Positive = 10
    appendfsync: Literal["always", "everysec"] = "always"
    replicas_min: Annotated[int, Field(ge=0)] = Field(
        default=0, description="of the sales engine that must have a hold, an order or a share of an envelope before it is acknowledged"
    )
    replicas_wait_ms: Annotated[int, Field(gt=0, le=4_000)] = Field(
        default=1_000, description="for them; then the answer is a temporary error, and the same key gets the final one"
    )

    # Payments and webhooks
    provider_timeout_s: Annotated[int, Field(gt=0, le=4)] = 4  # clients give a command up after 5 s
    provider_attempts_max: Positive = Field(default=12, description="calls to a provider that does not answer, further and further apart")
    provider_takeover_s: Positive = Field(
        default=30, description="after `provider_timeout_s`: then a call of a process that died in the middle is made again"
    )
    stripe_secret_key: SecretStr = SecretStr("")
    stripe_webhook_secret: SecretStr = Field(default=SecretStr(""), description="`whsec_...` of the endpoint that Stripe calls")
    stripe_publishable_key: str = Field(default="", description="handed to viewers' apps with each payment")
    stripe_api_url: str = Field(default="", description="another address of Stripe's API, for tests; empty: the real one")
    payment_provider: Literal["sandbox", "stripe"] = Field(default="sandbox", description="who takes new payments; `sandbox` pretends")
    sandbox_payment_delay_ms: Annotated[int, Field(ge=0)] = 800
    sandbox_retry_ms_max: Positive = Field(
        default=60_000, description="until the sandbox repeats a webhook that nobody heard: 2 s at first, then twice as long each time"
    )
    sandbox_amount_patterns: bool = Field(
        default=False, description="the last two digits of an amount choose how the sandbox behaves (docs/payments.md)"
    )
    receipt_days_max: Positive = Field(default=10, description="after shipping; then an order counts as delivered")
    return_answer_days: Positive = Field(default=3, description="for the team to answer a return request; then it is approved")
    return_ship_days: Positive = Field(default=7, description="for the viewer to send the goods back; then it is closed")
    return_receive_days: Positive = Field(default=10, description="for the team to say that they came; then the money goes back")
    return_inspect_days: Positive = Field(default=3, description="for the team to look at them; then the money goes back")
    return_fault_days: Positive = Field(default=30, description="after delivery, to report a fault")
    return_fresh_fault_days: Positive = Field(default=2, description="the same of fresh goods")
    returns_per_order_max: Positive = 5
    export_orders_max: Positive = Field(default=100_000, description="of one file; a sheet of XLSX ends at 1,048,576 rows")
    webhook_tolerance_s: Positive = 300
    webhook_attempts_max: Positive = 12
    webhook_timeout_s: Positive = 10
    webhooks_to_private_addresses: bool = Field(default=False, description="let webhooks reach loopback and private networks")

    # REST
    body_bytes_max: Positive = 256 * 1024
    body_timeout_s: Positive = 30
    page_size_max: Positive = 200
    idempotency_key_ttl_s: Positive = 24 * 3600

    # Keeping
    hot_keys_ttl_s: Positive = 24 * 3600
    provider_records_days: Positive = Field(
        default=180, description="webhooks of payment providers as they came, and calls to them; payments, refunds and disputes stay"
    )

    @field_validator("jwks_url")
    @classmethod
    def _check_jwks_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if url and (parts.scheme not in {"http", "https"} or not parts.hostname):
            raise ValueError("must be an http:// or https:// URL")
        return url

    @field_validator("jwks_algorithms")
    @classmethod
    def _check_jwks_algorithms(cls, text: str) -> str:
        words = split_words(text)
        if not words or not set(words) <= set(COMPANY_ALGORITHMS):
            raise ValueError(f"must be one or more of {', '.join(COMPANY_ALGORITHMS)}, separated by commas")
        return text

    @field_validator("payment_provider")
    @classmethod
    def _check_provider(cls, name: str, info: ValidationInfo) -> str:
        names = ("stripe_secret_key", "stripe_webhook_secret")
        missing = [key for key in names if key in info.data and not info.data[key].get_secret_value()]
        if name == "stripe" and missing:
            raise ValueError(f"stripe needs {' and '.join(f'JISHI_{key.upper()}' for key in missing)}")
        return name

    @property
    def base_url(self) -> str:
        return self.public_url.rstrip("/") or f"http://{self.host}:{self.port}"

    @property
    def secret_bytes(self) -> bytes:
        return self.token_secret.get_secret_value().encode()

    def check_production(self) -> None:
        """Refuse to serve strangers on a secret that everybody can read, or on keys that anybody on the way can exchange."""
        if self.environment != "production":
            return
        if self.token_secret.get_secret_value() == DEMO_SECRET:
            raise SetupError("JISHI_TOKEN_SECRET is the published demo secret: set your own, for instance with `openssl rand -hex 32`")
        if len(self.secret_bytes) < SECRET_BYTES_MIN:
            raise SetupError(f"JISHI_TOKEN_SECRET is shorter than {SECRET_BYTES_MIN} bytes: set a longer one (`openssl rand -hex 32`)")
        if self.jwks_url and urlsplit(self.jwks_url).scheme == "http" and not _is_loopback(urlsplit(self.jwks_url).hostname or ""):
            raise SetupError(
                "JISHI_JWKS_URL is not encrypted: use https://, or a server on this machine, so that nobody can exchange the keys"
            )
        if (self.token_issuer or self.token_audience) and not self.jwks_url:
            raise SetupError(
                "JISHI_TOKEN_ISSUER and JISHI_TOKEN_AUDIENCE concern tokens signed with a JWKS key: set JISHI_JWKS_URL, or unset them"
            )

    def check_engines(self) -> None:
        missing = [name for name, url in (("REDIS_URL", self.redis_url), ("DATABASE_URL", self.database_url)) if not url]
        if missing:
            raise SetupError(
                f"{' and '.join(missing)} not set, and no running product found in {self.data_dir}: set them, or run `jishi up`"
            )
        self.check_engine_urls()

    def check_engine_urls(self) -> None:
        """An address that no client of ours can use is a mistake of the operator, to be told before anything starts."""
        redis, sql = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster"), ("postgresql", "postgres", "postgresql+asyncpg")
        urls = (
            ("REDIS_URL", self.redis_url, redis),
            ("FANOUT_REDIS_URL", self.fanout_redis_url, redis),
            ("DATABASE_URL", self.database_url, sql),
        )
        for name, url, schemes in urls:
            if url and url.partition("://")[0] not in schemes:
                raise SetupError(f"{name} must begin with {' or '.join(f'{scheme}://' for scheme in schemes[:2])}")


def split_words(text: str) -> list[str]:
    """The words of a comma-separated setting."""
    return [word for word in (part.strip() for part in text.split(",")) if word]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
