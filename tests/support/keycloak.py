"""A Keycloak of a few lines: it signs what a user is told."""

from __future__ import annotations

import time
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from monailabel.config import settings


class Keycloak:
    """Makes access tokens as Keycloak does, and such as it does not make."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = serialization.PublicFormat.SubjectPublicKeyInfo
        pem = self.key.public_key().public_bytes(serialization.Encoding.PEM, public)
        self.public = pem.decode()

    def log_in(self, *roles: str, **claims: Any) -> dict[str, str]:
        """The headers of a user with these roles; a claim of None is left out."""
        return self.headers({"realm_access": {"roles": roles}, **claims})

    def headers(self, claims: dict[str, Any]) -> dict[str, str]:
        """With a token that says this beside what every token says."""
        told = {
            "preferred_username": "ann",
            "iss": settings.MONAI_LABEL_AUTH_REALM_URI,
            "azp": settings.MONAI_LABEL_AUTH_CLIENT_ID,
            "aud": "account",
            "typ": "Bearer",
            "exp": int(time.time()) + 300,
            **claims,
        }
        left = {name: value for name, value in told.items() if value is not None}
        return {"authorization": f"Bearer {jwt.encode(left, self.key, algorithm='RS256')}"}
