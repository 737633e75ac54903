"""The digest of code: changes with and without effect, and equality on all versions of Python."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.common import code
from pipeline.common.code import code_digest, reached_files, tree_digest

CONSTRUCTS = r'''
"""A docstring."""
from __future__ import annotations
import a.b as c, d
from . import e
from ..f import g as h

class C(B, metaclass=M):
    x: int = 3
    """Says what x is."""
    y: "list[int]"

@decorated(1)
async def f(a, /, b=1, *args: int, c, d=-2.5, **kwargs) -> dict[str, int]:
    """Another."""
    async with x as y, z: pass
    async for i in y: await i
    else: return [j async for j in k if j]
    return {**a, 'b': 1, None: (yield)}

def g(x):
    global G
    try: raise E from None
    except (E, F) as error: del x[1:2, ..., ::3]
    finally: assert x, "text"
    try: pass
    except* G: pass

def h(x, w):
    match x:
        case {"a": 1, **rest} if rest: pass
        case C(1, y=[_, *more]) | None as z: pass
        case -1 | "t" | True: pass
    while (n := x): break
    else: x @= ~n ** 2 if not n else lambda *a, k=1: (a, k)
    return f"a{x!r:>{w}}b" "c" f"{x=}{x:}{{}}{'q' 'r'}" rf"\d{x:%H}" + u"ü\u0378" + "" f"", b"\x00", 1_000, 1j, 1e400
'''
CONSTRUCTS_DIGEST = "89de541cb2ec9db3a55fb3eed7b51c92f6d5515a462d998c3ca2dfc068b68aaa"


def package(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


FILES = {
    "p/__init__.py": "",
    "p/main.py": "from p.lib import made\n\n\ndef run():\n    import p.late\n    return made.value(1)\n",
    "p/late.py": "LATE = 1\n",
    "p/lib/__init__.py": "START = 1\n",
    "p/lib/made.py": "from . import beside\nfrom .below.deep import x\n\n\ndef value(n):\n    return n + beside.ONE\n",
    "p/lib/beside.py": "ONE = 1\n",
    "p/lib/below/__init__.py": "",
    "p/lib/below/deep.py": "from ..beside import ONE as x\n",
    "p/apart.py": "import p.main\n",
}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = 1", "# why\nx  =  (1)\n\n"),
        ("def f(a, b):\n    return a", 'def f(\n    a,\n    b,\n):\n    """Says."""\n    return a  # it'),
        ("class C:\n    x: int = 1", 'class C:\n    """Is."""\n\n    x: int = 1\n    """Says."""'),
        ("x = 'a'", 'x = u"a"'),
        ("x = f'ab{c}'", "x = 'a' f'b{c}' ''"),
    ],
)
def test_changes_without_effect_keep_the_digest(before: str, after: str) -> None:
    assert tree_digest(ast.parse(before)) == tree_digest(ast.parse(after))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = 1", "x = 2"),
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = 0.0", "x = -0.0"),
        ("x = 'a'", "x = b'a'"),
        ("x = None", "x = ..."),
        ("def f(): return", "def f(): return None"),
        ("f(a, b)", "f(b, a)"),
        ("f([], 1)", "f(1, [])"),
        ("x = f'a{b}'", "x = f'{b}a'"),
        ("x = f'{b}'", "x = f'{b!r}'"),
        ("x = {**a}", "x = {a: a}"),
        ("if a:\n    b()\n    c()", "if a:\n    b()\nc()"),
        ("x[1:]", "x[:1]"),
        ("def f(a, *, b): g()", "def f(a, b): g()"),
    ],
)
def test_changes_with_a_possible_effect_change_the_digest(before: str, after: str) -> None:
    assert tree_digest(ast.parse(before)) != tree_digest(ast.parse(after))


@pytest.mark.parametrize("changed", sorted(set(FILES) - {"p/apart.py"}))
def test_every_form_of_import_is_followed(tmp_path: Path, changed: str) -> None:
    before = code_digest("p.main", source=package(tmp_path / "a", FILES))
    after = code_digest("p.main", source=package(tmp_path / "b", FILES | {changed: FILES[changed] + "CHANGED = 1\n"}))
    assert before != after


def test_modules_that_are_not_imported_do_not_count(tmp_path: Path) -> None:
    before = code_digest("p.main", source=package(tmp_path / "a", FILES))
    apart = FILES | {"p/apart.py": "CHANGED = 1\n"}
    assert code_digest("p.main", source=package(tmp_path / "b", apart)) == before
    files = reached_files("p.main", source=tmp_path / "a")
    assert {file.relative_to(tmp_path / "a").as_posix() for file in files} == set(FILES) - {"p/apart.py"}


def test_a_moved_module_changes_the_digest(tmp_path: Path) -> None:
    moved = {name: text for name, text in FILES.items() if name != "p/late.py"}
    moved |= {"p/later.py": FILES["p/late.py"]}
    before = code_digest("p.main", source=package(tmp_path / "a", FILES))
    assert code_digest("p.main", source=package(tmp_path / "b", moved)) != before


def test_left_out_modules_do_not_count_but_are_archived(tmp_path: Path) -> None:
    files = {
        "pipeline/__init__.py": "",
        "pipeline/train.py": "from pipeline.common.files import digest\nfrom pipeline.config import Params\n",
        "pipeline/config.py": "import pipeline.secret\n",
        "pipeline/secret.py": "",
        "pipeline/common/__init__.py": "",
        "pipeline/common/files.py": "",
    }
    before = code_digest("pipeline.train", source=package(tmp_path / "a", files))
    changed = {name: text + ("" if name == "pipeline/train.py" else "X = 1\n") for name, text in files.items()}
    changed["pipeline/__init__.py"] = ""
    assert code_digest("pipeline.train", source=package(tmp_path / "b", changed)) == before
    names = {file.name for file in reached_files("pipeline.train", source=tmp_path / "a")}
    assert names == {"__init__.py", "train.py", "config.py", "secret.py", "files.py"}
    assert all(reason for reason in code.MODULES_LEFT_OUT.values())


def test_a_missing_module_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"p\.nothing"):
        code_digest("p.nothing", source=package(tmp_path, FILES))


def test_every_construct_has_the_digest_of_all_python_versions() -> None:
    assert tree_digest(ast.parse(CONSTRUCTS)) == CONSTRUCTS_DIGEST


def other_pythons() -> list[str]:
    """Interpreters of other versions on this machine that start (a shim may not)."""
    names = [f"python3.{minor}" for minor in (11, 12, 13) if minor != sys.version_info.minor]
    return [
        name
        for name in names
        if shutil.which(name) and not subprocess.run([name, "-c", ""], capture_output=True).returncode
    ]


def test_other_pythons_agree_on_this_package(tmp_path: Path) -> None:
    """Without another Python on this machine, only the digest above is checked, which all of them gave."""
    shutil.copytree(code.SOURCE / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.py") if path.name != "__init__.py"]
    modules = sorted(".".join(path.with_suffix("").parts) for path in files)
    program = (
        "import sys; from pipeline.common.code import code_digest\n"
        "for name in sys.argv[1:]: print(name, code_digest(name))"
    )
    for python in [sys.executable, *other_pythons()]:
        ran = subprocess.run([python, "-c", program, *modules], cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.splitlines() == [f"{name} {code_digest(name)}" for name in modules], python


def test_the_digest_is_fast_and_imports_nothing() -> None:
    program = (
        "import sys, time; from pipeline.common.code import code_digest; began = time.process_time()\n"
        "code_digest('pipeline.corpora.manifest', 'pipeline.model.roles'); first = time.process_time() - began\n"
        "code_digest('pipeline.model.roles', 'pipeline.corpora.manifest')\n"
        "assert not {'pipeline.corpora.manifest', 'pydantic'} & set(sys.modules)\n"
        "assert first < 0.5 and time.process_time() - began < first + 0.001"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=code.SOURCE, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
