"""Writes docs/settings.md from the settings themselves; `--check` fails when the page is out of date."""

import sys
from pathlib import Path

from stillmotion.settings import Settings, describe_settings, load_settings

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
HEAD = """# Settings

Written by `make docs` from `src/stillmotion/settings.py`; change that file, not this one.

A value comes from the command line, else from the environment variable, else from the default. Lists are
separated by commas. `stillmotion settings` prints what is in force and where each value came from.

| variable | default | unit | meaning |
|---|---|---|---|
"""


def settings_page() -> str:
    rows = describe_settings(load_settings({}, {}), {}, {})
    lines = [f"| `{row.name}` | {_default(row.default)} | {row.unit} | {row.description} |" for row in rows]
    assert len(lines) == len(Settings.model_fields)
    return HEAD + "\n".join(lines) + "\n"


def _default(text: str) -> str:
    return f"`{text}`" if text else "unset"


def main() -> int:
    if "--check" not in sys.argv:
        PAGE.write_text(settings_page(), encoding="utf-8")
        return 0
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != settings_page():
        print(f"{PAGE.name} is out of date; run `make docs` and commit it.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
