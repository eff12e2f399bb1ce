"""Where the time of a film over HTTP goes, from the client's submit to its answer, with the pocket weights.

    PYTHONPATH=src:. python -m bench.where [--films 8]

Sync calls one after the other on a server of its own; the quickest film of each kind is shown, because on a
shared machine everything else is somebody else's time.
"""

import argparse
import tempfile
import time
from pathlib import Path

from bench.films import ENGINE_STAGES, PROMPT, QUALITY, TURBO, Made, first_frame, make, read_rows, upload
from stillmotion.types import Request
from tests.server import Server


def parts(made: Made, row: Request) -> dict[str, float]:
    """Seconds in the order they pass."""
    known = {
        "submit: client sends, input validated": row.created - made.sent,
        "queue: row durable, claimed durably, runner has the job": row.timings["queue"],
        **{stage: row.timings[stage] for stage in (*ENGINE_STAGES, "close", "publish")},
    }
    rest = "between the stages, finish durable, answer read"
    return {**known, rest: made.seconds - sum(known.values())}


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("--films", type=int, default=8)
    told = ask.parse_args()
    with tempfile.TemporaryDirectory(prefix="stillmotion-") as name:
        folder, begun = Path(name), time.time()
        with Server(folder / "where") as server, server.client() as client:
            print(f"server ready after {time.time() - begun:.2f} s")
            picture = upload(client, first_frame(client, make(client, TURBO, {"prompt": PROMPT}).url, folder))
            kinds = {
                "turbo": [make(client, TURBO, {"prompt": PROMPT, "seed": n}) for n in range(told.films)],
                "HQ": [make(client, QUALITY, {"image_url": picture, "seed": n}) for n in range(told.films)],
            }
        for kind, films in kinds.items():
            best = min(films, key=lambda made: made.seconds)
            (row,) = read_rows(server.data_dir, [best])
            print(f"\n{kind}: {best.seconds * 1000:.0f} ms, the quickest of {told.films}")
            for part, seconds in parts(best, row).items():
                print(f"| {part} | {seconds * 1000:.0f} |")


if __name__ == "__main__":
    main()
