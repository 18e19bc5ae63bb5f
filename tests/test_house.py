"""The layout of the library holds: imports, sizes and names, and what the README says of it."""

import ast
import doctest
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hf_cyclprune
from hf_cyclprune import CRITERIA, METHODS, RAMPS
from hf_cyclprune.cli import main
from hf_cyclprune.pruning.patterns import SCOPES
from hf_cyclprune.pruning.pruned_weights import PRUNED_WEIGHTS
from tests.hub.repos import save_tiny_bert

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_cyclprune"
README = (ROOT / "README.md").read_text(encoding="utf-8")

# A module imports only from rooms before its own.
ROOMS = [
    "checks",
    "files",
    "secrets",
    "engines",
    "pruning",
    "papers",
    "methods",
    "options",
    "config",
    "config_file",
    "packing",
    "inference",
    "reporting",
    "pictures",
    "card",
    "one_shot",
    "hub",
    "training",
    "glue",
    "demo",
    "verbs",
    "cli",
]
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imports_of(path):
    """Full names of the modules that a source file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports_of(path):
        package, _, rest = name.partition(".")
        if package == "hf_cyclprune":
            assert rest, f"{path.name} imports the package from inside"
            assert ROOMS.index(rest.split(".")[0]) <= ROOMS.index(room), name
        if room in ("engines", "pruning"):
            assert package not in ("transformers", "datasets", "accelerate"), name


ENGINE_WORDS = {
    "distributed",
    "placements",
    "to_local",
    "full_tensor",
    "device_mesh",
    "ds_id",
    "ds_tensor",
    "ds_shape",
    "_hp_mapping",
    "_z3_optimizer",
}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_one_room_knows_how_an_engine_divides_a_weight(path):
    if path.relative_to(PACKAGE).parts[0] == "engines":
        return
    nodes = list(ast.walk(tree_of(path)))
    words = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    words |= {node.id for node in nodes if isinstance(node, ast.Name)}
    words |= {word for name in imports_of(path) for word in name.split(".")}
    assert not words & ENGINE_WORDS


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_files_import_each_other_in_a_circle():
    graph = {module_of(path): set(imports_of(path)) for path in MODULES}
    while graph:
        free = [name for name, imports in graph.items() if not imports & graph.keys() - {name}]
        assert free, f"a circle among {sorted(graph)}"
        for name in free:
            del graph[name]


def test_no_public_name_is_defined_twice():
    homes = {}
    for path in MODULES:
        for node in tree_of(path).body:
            is_definition = isinstance(node, ast.ClassDef | ast.FunctionDef)
            if is_definition and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module_of(path))
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def test_files_and_functions_are_short():
    for path in MODULES:
        assert path.read_text(encoding="utf-8").count("\n") <= 250, path
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                assert node.end_lineno - first < 40, f"{path.name}: {node.name}"


def test_the_readme_is_short():
    assert README.count("\n") <= 250


def test_the_readme_names_every_method_and_its_table_has_a_row_for_each():
    (block,) = re.findall(r"<!-- methods -->\n(.*?)\n<!-- end -->", README, re.DOTALL)
    assert re.findall(r"`(\w+)`", block) == list(METHODS)
    rows = ["| method | | sparsity s and the rest |", "|---|---|---|"]
    for name, row in METHODS.items():
        source = f" ([{row.paper.short}]({row.paper.url}))" if row.paper is not None else ""
        rows.append(f"| `{name}` | {row.title}{source} | {row.formula} |")
    table = (PACKAGE / "METHODS.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in table if line.startswith("|")] == rows


def test_the_readme_lists_what_else_can_be_chosen():
    (lines,) = re.findall(r"^Ramps: (?:.*\n){3}", README, re.MULTILINE)
    assert re.findall(r"`(\w+)`", lines) == [*RAMPS, *CRITERIA, *SCOPES, *PRUNED_WEIGHTS]


def test_schedules_need_the_standard_library_only():
    ours = ("hf_cyclprune.checks", "hf_cyclprune.pruning.ramps")
    for file in ("pruning/schedules.py", "pruning/ramps.py", "checks.py"):
        names = {name for name in imports_of(PACKAGE / file) if not name.startswith(ours)}
        assert {name.partition(".")[0] for name in names} <= set(sys.stdlib_module_names)


def test_the_readme_lists_the_public_names():
    (block,) = re.findall(r"<!-- public names -->\n(.*?)\n<!-- end -->", README, re.DOTALL)
    assert sorted(re.findall(r"`(\w+)`", block)) == sorted(hf_cyclprune.__all__)
    assert all(hasattr(hf_cyclprune, name) for name in hf_cyclprune.__all__)


def test_the_public_names_have_docstrings():
    for name in hf_cyclprune.__all__:
        assert getattr(hf_cyclprune, name).__doc__, name


def test_the_prompts_in_the_readme_answer_as_printed():
    results = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert results.attempted > 3
    assert results.failed == 0


@pytest.fixture
def registries():
    """Removes what a test registers."""
    before = [(registry, dict(registry)) for registry in (CRITERIA, METHODS, RAMPS)]
    yield
    for registry, rows in before:
        registry.clear()
        registry.update(rows)


@pytest.mark.parametrize("index", range(len(re.findall(r"```python\n(?!>>>)", README))))
@pytest.mark.usefixtures("registries")
def test_the_python_blocks_of_the_readme_run(index, tmp_path, monkeypatch, tiny_bert, examples):
    """Runs each with a tiny model and data in the place of the user's."""
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(?!>>>)(.*?)```", README, re.DOTALL)[index]
    tiny_bert().save_pretrained(tmp_path / "model")
    save_tiny_bert(tmp_path / "sst2")
    names = {"model": tiny_bert(), "train_dataset": examples, "eval_dataset": examples}
    exec(compile(code, f"README block {index}", "exec"), names)


def test_the_commands_in_the_readme_exist(capsys):
    verbs = set(re.findall(r"hf-cyclprune (\w+)", README))
    assert len(verbs) >= 8
    for verb in verbs:
        with pytest.raises(SystemExit) as ended:
            main([verb, "--help"])
        assert ended.value.code == 0, verb
        assert capsys.readouterr().out.startswith(f"usage: hf-cyclprune {verb}")


def test_the_wheel_holds_the_code_the_types_and_the_license(tmp_path):
    pytest.importorskip("setuptools")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, "-w", str(tmp_path), str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for path in MODULES:
        assert str(path.relative_to(ROOT)) in names
    data = {"py.typed", "papers.bib", "card/template.md", "packing/FORMAT.md"}
    assert {f"hf_cyclprune/{name}" for name in data} <= set(names)
    assert any(name.endswith("LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "examples/")) for name in names)
