"""Contact sheets: rows of small pictures to look at."""

from pathlib import Path

import torch
from PIL import Image
from torch.nn.functional import interpolate

from training.render import to_image


def save_sheet(rows: list[list[torch.Tensor]], path: Path, width: int = 200) -> None:
    """Write rows of 3 x H x W pictures in [0, 1], scaled to one width; a row has one height."""
    strips = []
    for row in rows:
        cells = []
        for picture in row:
            height = round(picture.shape[1] * width / picture.shape[2])
            cells.append(
                interpolate(picture[None].float(), (height, width), mode="bilinear", antialias=True)[0]
            )
            cells.append(torch.ones(3, height, 3))
        strips += [torch.cat(cells, 2), torch.ones(3, 3, len(row) * (width + 3))]
    path.parent.mkdir(parents=True, exist_ok=True)
    to_image(torch.cat(strips, 1)).save(path)


def stack(paths: list[Path], target: Path) -> None:
    """Put sheets of one width under each other."""
    sheets = [Image.open(path) for path in paths]
    whole = Image.new("RGB", (max(s.width for s in sheets), sum(s.height + 6 for s in sheets)), "black")
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height + 6
    whole.save(target, quality=88)
