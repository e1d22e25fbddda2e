"""The front door's options, from the environment or a file `.env` in the working folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from esp_medsam_app.errors import InputError

_PREFIX = "ESP_MEDSAM_"
_SHORTEST_TOKEN = 16


class DoorSettings(BaseSettings):
    """Each option is the variable `ESP_MEDSAM_` with its name in capitals; an empty one counts not.

    Attributes:
        token: what every client has to send, as bearer token or as the password of any user name;
            none: no log-in.
        admin_token: what admins send: they train, upload models, delete, read the log. Without it
            the token does all that.
        hosts: names under which the server answers, `*.site.org` too; all if empty. Keeps a foreign
            web page from reaching it under a name of its own.
        max_upload_mb: largest body of a request.
        max_json_kb: largest body that is no upload.
        upload_seconds: how long a client may be silent in the middle of a body, or take nothing
            of its answer.
        header_seconds: how long a client may take to send a request's headers.
        min_free_mb: of each disk that is written to, which no upload may fill further.
        infer_slots: inferences at the same time; two a device by default: while one computes, the
            other reads and writes.
        infer_queue: inferences that may wait; the next one is told to come back later.
        work_slots: other requests at the same time.
        work_queue: other requests that may wait.
        keycloak_issuer: who makes Keycloak's tokens (`iss`), where it is not the address at which
            this server asks Keycloak, `MONAI_LABEL_AUTH_REALM_URI`.
        keycloak_audience: for whom they are made (`azp` or `aud`), where it is not the client
            `MONAI_LABEL_AUTH_CLIENT_ID`.
        audit_file: of the audit; `logs/audit.jsonl` of the app by default.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True
    )
    token: SecretStr | None = None
    admin_token: SecretStr | None = None
    hosts: Annotated[list[str], NoDecode] = []
    max_upload_mb: float = Field(default=4096, gt=0)
    max_json_kb: float = Field(default=1024, gt=0)
    upload_seconds: float = Field(default=60, gt=0)
    header_seconds: float = Field(default=20, gt=0)
    min_free_mb: float = Field(default=512, ge=0)
    infer_slots: int | None = Field(default=None, ge=1)
    infer_queue: int = Field(default=32, ge=0)
    work_slots: int = Field(default=24, ge=1)
    work_queue: int = Field(default=256, ge=0)
    keycloak_issuer: str | None = None
    keycloak_audience: str | None = None
    audit_file: Path | None = None

    @field_validator("hosts", mode="before")
    @classmethod
    def _by_comma(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [host.strip().lower() for host in value.split(",") if host.strip()]
        return value

    @field_validator("token", "admin_token")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < _SHORTEST_TOKEN:
            raise ValueError(f"{_SHORTEST_TOKEN} characters at least; try `openssl rand -hex 32`")
        return value

    @classmethod
    def read(cls) -> DoorSettings:
        """The options as they are set.

        Raises:
            InputError: a value that cannot be used; names the variable, not a token's value.
        """
        try:
            settings = cls()
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            name = _PREFIX + str(first["loc"][0]).upper()
            raise InputError(f"{name}: {first['msg'].removeprefix('Value error, ')}") from None
        if settings.admin_token is not None and settings.token is None:
            raise InputError(
                f"{_PREFIX}ADMIN_TOKEN is set, but {_PREFIX}TOKEN is not",
                remedy=f"Set {_PREFIX}TOKEN too: else anyone may see the images",
            )
        return settings
