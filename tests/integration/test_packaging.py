"""What a user gets from `pip install .` and `pip install -e .`, and what the two say they need."""

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from inferline_stream.observability.alert_rules import GUIDES

ROOT = Path(__file__).parents[2]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = DECLARED["project"]
VERSION = Version(DECLARED["tool"]["setuptools_scm"]["fallback_version"])
SOURCES = ("pyproject.toml", "README.md", "LICENSE")
GENERIC = ("connectors", "src", "tests", "topologies")


def _built(tree: Path, hook: str, out: Path) -> Path:
    """What one hook of the build backend makes of a source tree."""
    code = f"import setuptools.build_meta as backend; print(backend.{hook}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what belongs to the package, links kept as links, as a checkout has them."""
    tree = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        shutil.copy(ROOT / name, tree)
    for name in ("inferline_stream", "connectors", "topologies"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return tree


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    """The wheel, built from the source distribution, as an index serves it."""
    sdist = _built(tree, "build_sdist", tmp_path_factory.mktemp("sdist"))
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (inner,) = unpacked.iterdir()
    return _built(inner, "build_wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def editable(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("editable")
    with zipfile.ZipFile(_built(tree, "build_editable", tmp_path_factory.mktemp("editable-wheel"))) as archive:
        archive.extractall(folder)
    return folder


def seen_from(folder: Path, code: str, cwd: Path) -> str:
    """Run code where `folder` is site-packages, and this environment's libraries are there but not our own install."""
    libraries = sysconfig.get_paths()["purelib"]
    program = f"import site, sys; site.addsitedir({str(folder)!r}); sys.path.append({libraries!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_holds_every_file_of_the_package(tree, wheel):
    files = {
        str(path.relative_to(tree))
        for top in ("inferline_stream", "inferline_stream/connectors")  # the walk does not follow the link by itself
        for path in (tree / top).rglob("*")
        if path.is_file()
    }
    assert "inferline_stream/connectors/sources/trace_replay.py" in files
    assert "inferline_stream/py.typed" in files
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == files


def test_the_wheel_installs_no_other_top_level_name(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"inferline_stream", f"inferline_stream-{VERSION}.dist-info"}


def test_the_wheel_says_what_an_index_shows(wheel):
    with zipfile.ZipFile(wheel) as archive:
        said = Parser().parsestr(archive.read(f"inferline_stream-{VERSION}.dist-info/METADATA").decode())
    links = dict(link.split(", ") for link in said.get_all("Project-URL"))
    assert links.keys() == {"Repository", "Documentation", "Changelog", "Issues"}
    assert all(link.startswith(links["Repository"]) for link in links.values())
    assert said["Author"] == "inferline-stream contributors"
    assert "kafka" in said["Keywords"]
    assert set(said.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    pythons = {line.split(" :: ")[-1] for line in said.get_all("Classifier") if ":: Python :: 3." in line}
    assert pythons == {"3.11", "3.12", "3.13", "3.14"}


def test_the_guides_are_where_the_project_says():
    assert PROJECT["urls"]["Documentation"] == GUIDES


def test_a_release_needs_the_repositorys_address(tmp_path):
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    (step,) = [s for s in release["jobs"]["build"]["steps"] if s.get("name") == "Links lead to the repository"]
    files = ("pyproject.toml", "inferline_stream/observability/alert_rules.py")
    (tmp_path / "inferline_stream/observability").mkdir(parents=True)

    def accepted(address: str) -> bool:
        placeholder = GUIDES.removesuffix("/blob/main/docs")
        for file in files:
            (tmp_path / file).write_text((ROOT / file).read_text().replace(placeholder, address))
        return subprocess.run(["bash", "-e", "-c", step["run"]], cwd=tmp_path, check=False).returncode == 0

    assert accepted("https://code.host/someone/inferline-stream")
    assert not accepted("https://inferline-stream.example")


def test_a_checkout_with_a_tag_builds_the_version_of_the_tag(tree, tmp_path):
    tagged = shutil.copytree(tree, tmp_path / "tagged", symlinks=True)
    for command in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b.example", "commit", "--quiet", "-m", "a"],
        ["tag", "v7.8.9"],
    ):
        subprocess.run(["git", *command], cwd=tagged, check=True)
    assert _built(tagged, "build_wheel", tmp_path).name == "inferline_stream-7.8.9-py3-none-any.whl"


@pytest.mark.parametrize("kind", ["installed", "editable"])
def test_connectors_are_part_of_the_package_and_nothing_generic_is_importable(kind, request, tmp_path):
    folder = request.getfixturevalue(kind)
    code = (
        "import importlib.util as u, inferline_stream.connectors.sources.trace_replay as replay\n"
        "print(replay.__file__)\n"
        f"print([name for name in {GENERIC!r} if u.find_spec(name)])"
    )
    where, generic = seen_from(folder, code, tmp_path).splitlines()
    assert generic == "[]"
    source = folder if kind == "installed" else request.getfixturevalue("tree")
    assert Path(where) == source / "inferline_stream/connectors/sources/trace_replay.py"


def test_importing_the_package_imports_nothing_heavy(installed, tmp_path):
    code = "import inferline_stream, sys; print(sorted({'numpy', 'numba', 'aiokafka', 'rich'} & set(sys.modules)))"
    assert seen_from(installed, code, tmp_path) == "[]"


def test_a_type_checker_sees_the_installed_package_and_its_edges(installed, tmp_path):
    good = (ROOT / "topologies/minimal/topology.py").read_text()
    (tmp_path / "good.py").write_text(good)
    (tmp_path / "bad.py").write_text(good.replace("after=[read, search]", "after=[read, 'search']"))
    out = {}
    for name in ("good.py", "bad.py"):
        # mypy takes what it finds on MYPYPATH for the user's own; the user here wrote the topology.
        command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent", name]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={"MYPYPATH": str(installed), "PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        out[name] = done.stdout
    assert out["good.py"].startswith("Success"), out["good.py"]
    assert "bad.py" in out["bad.py"]
    assert '"str"; expected "Stage | Edge"' in out["bad.py"], out["bad.py"]


def _imports(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def _declared(*extras: str) -> dict[str, Requirement]:
    groups = PROJECT["optional-dependencies"] | DECLARED["dependency-groups"]
    lines = [*PROJECT["dependencies"], *(line for e in extras for line in groups[e] if isinstance(line, str))]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("inferline_stream", ("kubernetes", "dev")),  # doors to optional libraries import them when used
        ("connectors", ("postgres",)),
        ("topologies/assistant", ("assistant",)),
        ("topologies/minimal", ()),
        ("topologies/moderation", ("moderation",)),
        ("topologies/ocr", ("ocr",)),
        ("topologies/shop", ()),
        ("tests", ("dev", "moderation")),
    ],
)
def test_every_library_that_is_imported_is_declared(folder, extras):
    distributions = metadata.packages_distributions()
    declared = _declared(*extras)
    examples = {path.stem for path in ROOT.glob("topologies/*/*.py")}
    # Topologies among the tests are wrong on purpose, some in what they import.
    for file in (ROOT / folder).rglob("test_*.py" if folder == "tests" else "*.py"):
        beside = {path.stem for path in file.parent.iterdir()} | (examples if folder == "tests" else set())
        known = {"inferline_stream", "tests", *sys.stdlib_module_names, *beside}
        for name in _imports(file) - known:
            provided_by = {canonicalize_name(d) for d in distributions.get(name, [name])}
            assert provided_by & declared.keys(), f"{file}: {name} ({provided_by}) is not in pyproject.toml"


def test_the_readme_opens_with_three_commands_and_ci_runs_those_that_install_and_test():
    opening = (ROOT / "README.md").read_text().split("\n## First minutes\n")[1].split("\n## ")[0]
    demo, example, tests = re.findall(r"^((?:<!-- ci: \w+ -->\n)?```sh\n.*?)\n```", opening, re.MULTILINE | re.DOTALL)
    assert "--require-hashes -r requirements.lock" in demo
    assert demo.endswith("inferline-stream init demo && .venv/bin/inferline-stream run demo")
    assert example.endswith("inferline-stream run topologies/moderation")
    assert "--require-hashes -r requirements-dev.lock" in tests
    assert tests.endswith("-m pytest")
    script = (ROOT / ".ci/run").read_text()
    for name, block in (("install", demo), ("test", tests)):
        assert block.startswith(f"<!-- ci: {name} -->\n")
        assert f" readme {name} " in script
    assert '/.ci/package" python3\n' in script
    quick = (ROOT / ".ci/package").read_text()
    assert "inferline-stream init demo" in quick
    assert "inferline-stream run demo" in quick
