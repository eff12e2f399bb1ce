"""Draw the picture of docs/pocket.md, films from prompts: `python -m training.showcase`."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from training.loop import WEIGHTS
from training.maker import Maker
from training.render import to_image

TARGET = Path("docs/img/pocket.jpg")
WIDTH, HEIGHT, GAP, LINE = 192, 108, 4, 18
SHOWN = (0, 8, 16, 24)
PROMPTS = (
    "A rocket flying that is about to take off",
    "a yellow ball moving to the right in a meadow",
    "an orange balloon rising in the sky",
    "a green fish that bounces by the sea",
    "a pink star coming closer at night",
    "a red car driving left in the snow",
    "a blue plane landing in the desert",
    "a white boat waiting on the sea",
)


def main() -> None:
    torch.set_num_threads(1)
    maker = Maker(WEIGHTS)
    row = HEIGHT + LINE + GAP
    column = len(SHOWN) * (WIDTH + GAP) + 3 * GAP
    sheet = Image.new("RGB", (2 * column - 4 * GAP, row * ((len(PROMPTS) + 1) // 2)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, prompt in enumerate(PROMPTS):
        left, top = (number % 2) * column, number // 2 * row
        frames = maker.film(maker.draw([prompt], seed=number)[0], seed=number)
        pen.text((left + 2, top + 2), prompt, fill=(40, 40, 50), font=font)
        for place, frame in enumerate(SHOWN):
            small = to_image(frames[frame]).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
            sheet.paste(small, (left + place * (WIDTH + GAP), top + LINE))
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(TARGET, quality=88, optimize=True)
    print(f"{TARGET}: {TARGET.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
