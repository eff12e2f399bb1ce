"""Temporary tokens for browsers, which must not hold a key; streams alone take them."""

from typing import Annotated

from pydantic import AliasChoices, BaseModel, Field, ValidationError
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from stillmotion.endpoints import app_of
from stillmotion.http import wire
from stillmotion.http.answers import BadInput, Json
from stillmotion.http.site import Site
from stillmotion.http.ways.body import read_json
from stillmotion.http.ways.callers import Callers

#: Longest life of a token, and the one clients ask for.
LONGEST_S = 3600
USUAL_S = 120
BODY_BYTES = 64 * 1024

App = Annotated[str, Field(min_length=1, max_length=200)]


class Wanted(BaseModel):
    """What a caller asks of a token."""

    allowed_apps: Annotated[list[App], Field(min_length=1, max_length=64)]
    #: Seconds; newer clients call it `duration`.
    token_expiration: int = Field(
        default=USUAL_S, ge=1, le=LONGEST_S, validation_alias=AliasChoices("token_expiration", "duration")
    )


class TokenRoutes:
    def __init__(self, site: Site, callers: Callers) -> None:
        self.site = site
        self.callers = callers
        self.routes = [
            Route(path, self.issue, methods=["POST"]) for path in ("/rest/tokens", "/rest/tokens/realtime")
        ]

    async def issue(self, call: HttpRequest) -> Response:
        caller = await self.callers.identify(call, "tokens")
        try:
            wanted = Wanted.model_validate(await read_json(call, BODY_BYTES))
        except ValidationError as error:
            raise BadInput(wire.validation(error)) from None
        apps = [app_of(app) for app in wanted.allowed_apps]
        now = self.site.clock.now()
        token = self.site.tokens.sign(caller.key_id, apps, now, now + wanted.token_expiration)
        return Json(token, 201, headers={"cache-control": "no-store"})
