"""What the Python programs of the conformance matrix ask for; `tests/js/matrix_actions.mjs` asks the same."""

TURBO = "fal-ai/fast-svd-lcm/text-to-video"
HQ = "fal-ai/stable-video"
INPUT = {"prompt": "steps=1 pause=0", "seed": 7, "steps": 1, "video_size": {"width": 320, "height": 256}}
SLOW = {"prompt": "steps=400 pause=0.05", "steps": 20}
#: Above 100 MiB fal_client sends parts.
LARGE = 101 * 1024 * 1024 + 5
LIMIT_S = 60
