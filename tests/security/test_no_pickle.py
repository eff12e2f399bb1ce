"""Nothing here unpickles, evaluates or runs a shell on anything: read off the source itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parent.parent.parent / "src" / "stillmotion"
#: Each of these turns bytes into running code.
MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "multiprocessing",
    "yaml",
}
CALLS = {"eval", "exec", "torch.load", "np.load", "numpy.load", "os.system", "os.popen"}


def breaches(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names if name.name.partition(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in MODULES:
                yield module
            case ast.Call(func=func, keywords=keywords):
                if (called := ast.unparse(func)) in CALLS:
                    yield called
                for keyword in keywords:
                    if keyword.arg in ("shell", "allow_pickle", "trust_remote_code"):
                        yield f"{called}({keyword.arg})"
                    if keyword.arg == "use_safetensors" and ast.unparse(keyword.value) != "True":
                        yield f"{called} without safetensors"
                if called.endswith("from_pretrained") and "safetensors" not in ast.unparse(node):
                    yield f"{called} without use_safetensors" if "Model" in called else ""
            case _:
                pass


def test_no_bytes_become_code() -> None:
    found = [
        f"{path.relative_to(SOURCE)}: {breach}"
        for path in SOURCE.rglob("*.py")
        for breach in breaches(path.read_text())
        if breach
    ]
    assert found == []


def test_the_search_itself_finds_what_it_looks_for() -> None:
    for text in ("import pickle", "from multiprocessing import Queue", "torch.load(x)", "f(x, shell=True)"):
        assert list(breaches(text))
