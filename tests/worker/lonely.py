"""A worker in a process of its own, to be killed: `python -m tests.worker.lonely STORE_URL DATA_DIR`."""

import asyncio
import sys
from pathlib import Path

from stillmotion.store.open import open_store
from tests.worker.house import open_house


async def main(url: str, folder: Path) -> None:
    async with open_house(open_store(url), folder) as house:
        await house.at_step(await house.submit("hang_at=2"))
        print("running", flush=True)
        await asyncio.Event().wait()


asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
