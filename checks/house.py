"""House rules no other tool holds: size, names, one place that reads the environment, no workshop traces.

Run by `make lint`; prints each breach as path:line: text and exits 1 if there is any.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILE_LINES = 500
FUNCTION_LINES = 60
#: Words that say nothing of what a thing is.
BANNED = re.compile(r"Manager|Helper|Utils?$|Service|Processor|Handler|Common|^Base.*Impl$")
BANNED_FILES = re.compile(r"(utils?|helpers?|common|misc)\.py")
#: Reading, not the writing of a variable for a library about to be imported.
ENVIRONMENT = re.compile(r"\bos\.(getenv|environ(?!\[[^]]+\] = |\.setdefault\())\b")
READS_ENVIRONMENT = {"src/stillmotion/settings.py"}
#: Traces of the machine a thing was written on.
WORKSHOP = re.compile(
    r"/(work|root|tmp/hq|opt/(wheels|pypi))/|--(extra-)?index-url https?:|\bTODO\b|\bFIXME\b"
)
CODE = {"src", "tests", "checks", "bench", "examples", "training"}
TEXT = {".py", ".md", ".toml", ".txt", ".mjs", ".sh", ".json", ""}
MAX_TEXT_BYTES = 1_000_000

Breach = tuple[int, str]


def tracked() -> list[Path]:
    """List the files git knows or would add, so that a fresh clone and a working tree agree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file())


def check_text(name: str, text: str) -> Iterator[Breach]:
    for number, line in enumerate(text.splitlines(), 1):
        if name != "checks/house.py" and (found := WORKSHOP.search(line)):
            yield number, f"{found[0]!r} has no place in this repository"


def check_code(name: str, text: str) -> Iterator[Breach]:
    lines = text.splitlines()
    if len(lines) > FILE_LINES:
        yield 1, f"{len(lines)} lines, at most {FILE_LINES}"
    if BANNED_FILES.fullmatch(Path(name).name):
        yield 1, "a file is named after what it holds"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {length} lines, at most {FUNCTION_LINES}"
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and BANNED.search(node.name):
            yield node.lineno, f"{node.name}: name it after what it is"
    if name.startswith("src/") and name not in READS_ENVIRONMENT:
        for number, line in enumerate(lines, 1):
            if ENVIRONMENT.search(line):
                yield number, "only settings.py reads the environment"


def main() -> int:
    breaches = 0
    for path in tracked():
        name = path.relative_to(ROOT).as_posix()
        if path.suffix not in TEXT or path.stat().st_size > MAX_TEXT_BYTES:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found = list(check_text(name, text))
        if path.suffix == ".py" and name.split("/")[0] in CODE:
            found += check_code(name, text)
        for number, problem in sorted(found):
            print(f"{name}:{number}: {problem}")
        breaches += len(found)
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
