"""Seconds of whole requests with the pocket weights, for the gates' table: `python -m bench.speed`.

Sync calls over HTTP, one after the other, warm, 1024×576, on a machine that should do nothing else. They go
to bench/speed.json.
"""

import argparse
import json
import tempfile
from datetime import date
from pathlib import Path

from bench.figures import machine
from bench.films import PROMPT, QUALITY, TURBO, make, warm_up
from tests.server import Server

REPORT = Path("bench/speed.json")


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("--films", type=int, default=20, help="of each kind")
    told = ask.parse_args()
    with tempfile.TemporaryDirectory(prefix="stillmotion-") as name:
        folder = Path(name)
        where = machine(folder)
        with Server(folder / "speed") as server, server.client() as client:
            picture = warm_up(client, folder)
            seeds = range(told.films)
            seconds = {
                "turbo": [make(client, TURBO, {"prompt": PROMPT, "seed": n}).seconds for n in seeds],
                "quality": [make(client, QUALITY, {"image_url": picture, "seed": n}).seconds for n in seeds],
            }
    rounded = {kind: [round(s, 3) for s in measured] for kind, measured in seconds.items()}
    report = {"date": date.today().isoformat(), "machine": where, "seconds": rounded}
    REPORT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    for kind, measured in rounded.items():
        print(f"{kind}: {min(measured)} to {max(measured)} s, {told.films} films")


if __name__ == "__main__":
    main()
