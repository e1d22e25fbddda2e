"""What viewers ask for on connecting, and again and again while they are open."""

from __future__ import annotations

import json

from fastapi import APIRouter, Depends
from fastapi.encoders import jsonable_encoder
from fastapi.responses import Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC

from esp_medsam_app.server.door.uploads import the_app

router = APIRouter(
    prefix="/info",
    tags=["AppService"],
    dependencies=[Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))],
)


@router.get("/", summary="Models, labels, trainings and the datastore")
async def info() -> Response:
    """As MONAI Label answers it, in a third of the time.

    It walks through every value to look whether JSON can hold it. Here only what JSON cannot hold
    is looked at. A coroutine, since the request has a thread of its own already.
    """
    told = json.dumps(the_app().info(), default=jsonable_encoder, allow_nan=False)
    return Response(told, media_type="application/json")
