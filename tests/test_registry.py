"""Finding methods, and the digest of their source."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from hibench import registry
from hibench.errors import EXIT_FAILED, EXIT_USAGE, AdapterError, ContractError, HibenchError, UnknownMethod
from hibench.registry import adapter_digest, contract_problems, load_adapter, method_names, why_unavailable
from hibench.toy import Toy

ADAPTER = '''
from dataclasses import dataclass

class Mine:
    name = "mine"
    axes = frozenset({"resolution"})
    def __init__(self, weights, options, device, dtype): pass
    def supports(self, axes): pass
    def load(self): pass
    def generate(self, resolution, seed, *, steps=None, sparsity=0.0, prompt=None, stage=None): pass
    def close(self): pass

@dataclass
class Other:
    x: int = 0
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Make an importable package from {file: text}; entry points are name -> module:Class."""
    def make(files: dict[str, str], points: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / "site" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        made = {name: importlib.metadata.EntryPoint(name, value, registry.GROUP) for name, value in points.items()}
        monkeypatch.setattr(registry, "_entry_points", lambda: made)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        for module in [name for name in sys.modules if name.partition(".")[0] in {file.partition("/")[0] for file in files}]:
            monkeypatch.delitem(sys.modules, module)
        return tmp_path / "site"

    yield make
    for module in [name for name in sys.modules if name.startswith("hibench_test_")]:
        del sys.modules[module]


def said_by(kind: type[HibenchError], adapter: str) -> str:
    with pytest.raises(kind) as caught:
        load_adapter(adapter)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_installed_methods():
    assert {"toy", "ldm", "real", "gaussian", "upsample"} <= set(method_names())
    assert load_adapter("toy") is Toy
    assert why_unavailable("toy") is None


def test_listing_imports_no_method_and_no_torch():
    code = ("import sys; from hibench import registry; names = registry.method_names(); assert 'toy' in names; "
            "sys.exit(any(name in sys.modules for name in ('torch', 'hibench.toy', 'methods')))")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_names():
    assert said_by(UnknownMethod, "toyy") == "no method 'toyy'; did you mean 'toy'?"
    assert said_by(UnknownMethod, "xyzzy") == "no method 'xyzzy'; `hibench list methods` shows them"
    assert said_by(UnknownMethod, "a.txt:B") == "'a.txt:B' is neither a method's name nor file.py:Class"
    assert said_by(UnknownMethod, "a.py") == "'a.py' is neither a method's name nor file.py:Class"
    assert said_by(UnknownMethod, "/nowhere/a.py:B") == "method '/nowhere/a.py:B': there is no file /nowhere/a.py"
    with pytest.raises(UnknownMethod, match="did you mean 'toy'"):
        adapter_digest("toyy")
    assert UnknownMethod.exit_code == EXIT_USAGE
    assert why_unavailable("toyy") == "no method 'toyy'; did you mean 'toy'?"


def test_a_class_in_a_file(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text(ADAPTER)
    cls = load_adapter(f"{file}:Mine")
    assert (cls.name, sys.modules[cls.__module__].__file__) == ("mine", str(file))
    monkeypatch.chdir(tmp_path)
    assert load_adapter("mine.py:Mine").name == load_adapter("./mine.py:Mine").name == "mine"
    assert said_by(UnknownMethod, "mine.py:Mime") == f"method 'mine.py:Mime': {file} has no class 'Mime'; did you mean 'Mine'?"


def test_a_file_is_read_anew(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(ADAPTER)
    load_adapter(f"{file}:Mine")
    file.write_text(ADAPTER.replace('"mine"', '"changed"'))
    assert load_adapter(f"{file}:Mine").name == "changed"


@pytest.mark.parametrize(("text", "said"), [
    ("import hibench_gone", "ModuleNotFoundError: No module named 'hibench_gone'; install hibench_gone"),
    ("1 / 0", "ZeroDivisionError: division by zero"),
    ("import sys; sys.exit(3)", "SystemExit: 3"),
    ("def f(:", "SyntaxError: invalid syntax (mine.py, line 1)"),
])
def test_a_file_that_cannot_be_imported(tmp_path, text, said):
    file = tmp_path / "mine.py"
    file.write_text(text)
    before = set(sys.modules)
    assert said_by(AdapterError, f"{file}:Mine") == f"method '{file}:Mine' cannot be imported ({file}): {said}"
    assert not [name for name in set(sys.modules) - before if name.startswith("hibench_file_")]
    assert AdapterError.exit_code == EXIT_FAILED


def test_an_entry_point_that_cannot_be_imported(package):
    package({"hibench_test_a/__init__.py": "import hibench_gone"}, {"a": "hibench_test_a:Mine", "b": "hibench_test_b:Mine"})
    assert said_by(AdapterError, "a") == ("method 'a' cannot be imported (hibench_test_a:Mine): "
                                          "ModuleNotFoundError: No module named 'hibench_gone'; install hibench_gone")
    assert said_by(AdapterError, "b").endswith("No module named 'hibench_test_b'; install hibench_test_b")


def test_an_entry_point_without_its_class(package):
    package({"hibench_test_a/__init__.py": ADAPTER}, {"a": "hibench_test_a:Mime", "b": "hibench_test_a:Mine"})
    assert said_by(UnknownMethod, "a") == "method 'a': hibench_test_a has no class 'Mime'; did you mean 'Mine'?"
    assert load_adapter("b").name == "mine"


@pytest.mark.parametrize(("old", "new", "said"), [
    ('name = "mine"', "", "it lacks the class attribute 'name', a text"),
    ('name = "mine"', "name = 3", "it lacks the class attribute 'name', a text"),
    ('axes = frozenset({"resolution"})', "", "it lacks the class attribute 'axes', e.g. frozenset({'resolution', 'steps'})"),
    ('axes = frozenset({"resolution"})', 'axes = "resolution"',
     "it lacks the class attribute 'axes', e.g. frozenset({'resolution', 'steps'})"),
    ("def supports(self, axes): pass", "", "it lacks the method 'supports'"),
    ("def load(self)", "def lode(self)", "it lacks the method 'load'"),
    ("def generate", "def generat", "it lacks the method 'generate'"),
    ("def close(self): pass", "close = 3", "it lacks the method 'close'"),
    ("def __init__(self, weights, options, device, dtype): pass", "", "it lacks '__init__(weights, options, device, dtype)'"),
    ("weights, options, device, dtype", "weights, device", "its '__init__' does not take 'options', 'dtype'"),
    ("sparsity=0.0, prompt=None, ", "", "its 'generate' does not take 'sparsity', 'prompt'"),
])
def test_a_class_that_lacks_a_member(tmp_path, old, new, said):
    assert old in ADAPTER
    file = tmp_path / "mine.py"
    file.write_text(ADAPTER.replace(old, new))
    assert said_by(ContractError, f"{file}:Mine") == f"method '{file}:Mine': {file}:Mine is not an adapter: {said}"


def test_all_that_a_class_lacks_is_said_at_once(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("class Mine: pass\nthing = 3\n")
    said = said_by(ContractError, f"{file}:Mine")
    assert all(f"'{member}'" in said for member in ("name", "axes", "supports", "load", "generate", "close"))
    assert said_by(ContractError, f"{file}:thing").endswith("is not an adapter: it is of type int, not a class")


def test_a_generate_with_keyword_arguments_is_good(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(ADAPTER.replace("*, steps=None, sparsity=0.0, prompt=None, stage=None", "**more"))
    assert contract_problems(load_adapter(f"{file}:Mine")) == []


# -- digests -----------------------------------------------------------------------------------------------------------


FILES = {
    "hibench_test_p/__init__.py": "", "hibench_test_p/one/__init__.py": "from hibench_test_p.one.model import x\n",
    "hibench_test_p/one/model.py": "from ..nn import unet\nx = 1\n", "hibench_test_p/one/unused.py": "",
    "hibench_test_p/nn/__init__.py": "", "hibench_test_p/nn/unet.py": "import hibench_test_p.blocks\n",
    "hibench_test_p/blocks.py": "from hibench.adapter import Stage\nimport torch\n",
    "hibench_test_p/two/__init__.py": "", "hibench_test_p/two/data.json": "{}",
    "hibench_test_p/single.py": "from . import blocks",
}
POINTS = {"one": "hibench_test_p.one:Mine", "two": "hibench_test_p.two:Mine", "single": "hibench_test_p.single:Mine"}


@pytest.mark.parametrize(("changed", "whose"), [
    ("one/__init__.py", {"one"}), ("one/model.py", {"one"}), ("one/unused.py", {"one"}), ("nn/unet.py", {"one"}),
    ("blocks.py", {"one", "single"}), ("two/__init__.py", {"two"}), ("two/data.json", set()), ("single.py", {"single"}),
])
def test_digest_follows_what_a_method_uses(package, changed, whose):
    root = package(FILES, POINTS)
    before = {name: adapter_digest(name) for name in POINTS}
    path = root / "hibench_test_p" / changed
    path.write_text(path.read_text() + "\n# changed\n")
    assert {name for name in POINTS if adapter_digest(name) != before[name]} == whose
    assert not any(name.startswith("hibench_test_p.") for name in sys.modules), "no method is imported"


def test_digest_of_a_new_file_and_of_broken_source(package):
    root = package(FILES, POINTS)
    before = adapter_digest("one")
    (root / "hibench_test_p" / "one" / "extra.py").write_text("def f(:")
    assert adapter_digest("one") != before


def test_digest_is_of_the_content_not_of_the_place(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(ADAPTER)
    one, two = (adapter_digest(f"{tmp_path}/{folder}/mine.py:Mine") for folder in ("a", "b"))
    assert one == two
    assert len(one) == 64
    (tmp_path / "b" / "mine.py").write_text(ADAPTER + "#")
    assert adapter_digest(f"{tmp_path}/b/mine.py:Mine") != one


def test_digests_of_shipped_methods():
    digests = {name: adapter_digest(name) for name in ("toy", "ldm", "real")}
    assert len(set(digests.values())) == 3
    assert adapter_digest("real") == adapter_digest("gaussian"), "one package"


def test_digest_of_a_missing_package(package):
    package({}, {"a": "hibench_test_gone.x:Mine"})
    with pytest.raises(UnknownMethod, match=r"method 'a': there is no module hibench_test_gone.x; is its package installed"):
        adapter_digest("a")


def test_exports_are_true():
    assert all(hasattr(registry, name) for name in registry.__all__)
