"""What the doors need to know; `serve` builds it once."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import Connection

from stillmotion.clock import Clock
from stillmotion.errors import CommitUnanswered, StillmotionError
from stillmotion.media.signing import UploadSigner
from stillmotion.media.store import MediaStore
from stillmotion.settings import Settings
from stillmotion.signatures import SigningKeys
from stillmotion.store.open import Store
from stillmotion.tokens import TokenSigner
from stillmotion.types import Readiness
from stillmotion.wakeup import Wakeup

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    settings: Settings
    store: Store
    media: MediaStore
    signer: UploadSigner
    tokens: TokenSigner
    #: Sign webhooks; their public halves are published.
    signatures: SigningKeys
    clock: Clock
    wakeup: Wakeup
    #: Whose queue submitted requests join.
    profile: str
    readiness: Callable[[], Readiness]
    version: str
    #: Set when the last runner has ended: calls that still wait are then told, not cut off.
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def record(self, operation: Callable[[Connection], T], media_key: str | None) -> T:
        """Write what refers to bytes that are here already; refused, they are deleted."""
        try:
            return await self.store.write(operation)
        except CommitUnanswered:
            # It may have been kept: housekeeping deletes the bytes if nothing refers to them.
            raise
        except StillmotionError:
            if media_key is not None:
                await self.media.delete([media_key])
            raise
