"""Files and requests as an attacker would send them."""

from __future__ import annotations
