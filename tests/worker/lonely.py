"""A worker in a process of its own, to be killed or stopped; it submits one request and says when that runs.

`python -m tests.worker.lonely STORE_URL DATA_DIR PROMPT LEASE_S`
"""

import asyncio
import sys
from pathlib import Path

from stillmotion.store.open import open_store
from tests.worker.house import open_house


async def main(url: str, folder: Path, prompt: str, lease_s: float) -> None:
    async with open_house(open_store(url), folder, lease_s=lease_s) as house:
        await house.at_step(await house.submit(prompt))
        print("running", flush=True)
        await asyncio.Event().wait()


asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], float(sys.argv[4])))
