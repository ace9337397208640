"""The wheel contains only the checkout's package, and the folders do not shadow other packages."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Folder of the checkout -> its place in the wheel, and the kinds of files that belong there.
PLACES = {
    "benchmark": ("overpaint", (".py", ".typed", ".html", ".css", ".js")),
    "methods": ("overpaint/methods", (".py",)),
    "conf": ("overpaint/conf", (".yaml",)),
    "datasets/concepts": ("overpaint/datasets/concepts", (".yaml", ".csv")),
    "datasets/imagenet": ("overpaint/datasets/imagenet", (".csv",)),
    "leaderboards/published": ("overpaint/leaderboards/published", (".csv", ".yaml")),
    "datasets/testbed": ("overpaint/datasets/testbed", (".json", ".jsonl", ".csv", ".md", ".safetensors")),
}
#: Other people's variables do not decide where Python looks for modules.
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
ENVIRONMENT["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"


def test_package_list_matches_the_folders():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {"overpaint.conf", "overpaint.datasets", "overpaint.leaderboards"}
    for top, name in (("benchmark", "overpaint"), ("methods", "overpaint.methods")):
        for init in (ROOT / top).rglob("__init__.py"):
            found.add(".".join([name, *init.parent.relative_to(ROOT / top).parts]))
    assert set(declared) == found


def test_data_folders_are_no_packages():
    assert not (ROOT / "datasets/__init__.py").exists()
    assert not (ROOT / "conf/__init__.py").exists()
    assert not (ROOT / "leaderboards/__init__.py").exists()


@pytest.mark.parametrize("name", ["benchmark", "methods"])
def test_folders_cannot_be_imported_under_their_own_name(name):
    done = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "do not import it as" in done.stderr


def test_public_names_are_listed_before_they_are_imported():
    import overpaint

    assert {"load_model", "erase", "load_erasure", "Erasure", "UserError"} <= set(dir(overpaint))


def test_import_datasets_is_not_ours():
    code = "import importlib.util as u; s = u.find_spec('datasets'); print(s.origin if s else None)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert str(ROOT / "datasets") not in done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout with its links and with gold models, which are too large for a wheel."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("benchmark", "methods", "conf", "datasets", "leaderboards"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "overpaint"):
        shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    gold = folder / "datasets" / "testbed_gold" / "without_church"
    gold.mkdir(parents=True)
    (gold / "unet.safetensors").write_bytes(b"")
    return folder


def pip(*arguments):
    """Run pip without the network: this environment's setuptools builds."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--no-deps", "--no-build-isolation", "--no-index", "-q"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def python(code, site, folder):
    """The output of this interpreter in another folder, with ``site`` before this environment's packages.

    Without ``-S`` the interpreter would first find this environment's own editable install.
    """
    head = f"import site, sys; site.addsitedir({str(site)!r}); sys.path.append({sysconfig.get_path('purelib')!r})\n"
    done = subprocess.run(
        [sys.executable, "-S", "-c", head + code], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package_once(checkout, tmp_path):
    pip("wheel", str(checkout), "-w", str(tmp_path))
    wheel = next(tmp_path.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    wanted = {
        f"{place}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, (place, endings) in PLACES.items()
        for file in (ROOT / folder).rglob("*")  # does not follow the link benchmark/methods
        if file.suffix in endings
    }
    assert {"overpaint/cli.py", "overpaint/methods/uce.py", "overpaint/conf/config.yaml"} < wanted
    assert sorted(name for name in names if ".dist-info/" not in name) == sorted(wanted)

    pip("install", str(wheel), "--target", str(tmp_path / "site"))
    code = (
        "import overpaint; print(overpaint.__file__)\n"
        "sys.argv = ['overpaint', 'list', 'methods']; from overpaint.cli import main; main()"
    )
    file, *methods = python(code, tmp_path / "site", tmp_path)
    assert file == str(tmp_path / "site" / "overpaint" / "__init__.py")
    assert {line.split()[0] for line in methods} == {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}


@pytest.mark.slow
def test_an_editable_install_is_the_checkout(checkout, tmp_path):
    """Imports work from another folder. Modules that the link `benchmark/methods` also reaches are loaded once."""
    pip("install", "--editable", str(checkout), "--target", str(tmp_path / "site"))
    code = (
        "import os, overpaint, overpaint.methods.none\n"
        "print(os.path.realpath(overpaint.__file__), os.path.realpath(overpaint.methods.none.__file__), sep='\\n')\n"
        "print([name for name in sys.modules if name.endswith('methods.none')])"
    )
    package, method, loaded = python(code, tmp_path / "site", tmp_path)
    assert package == str(checkout / "benchmark" / "__init__.py")
    assert method == str(checkout / "methods" / "none.py")
    assert loaded == "['overpaint.methods.none']"
