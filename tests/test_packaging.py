"""The wheel holds one package, the package list is complete, and the folders do not shadow other people's names."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_package_list_matches_the_folders():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {"overpaint.conf", "overpaint.datasets"}
    for top, name in (("benchmark", "overpaint"), ("methods", "overpaint.methods")):
        for init in (ROOT / top).rglob("__init__.py"):
            found.add(".".join([name, *init.parent.relative_to(ROOT / top).parts]))
    assert set(declared) == found


def test_data_folders_are_no_packages():
    assert not (ROOT / "datasets/__init__.py").exists()
    assert not (ROOT / "conf/__init__.py").exists()


@pytest.mark.parametrize("name", ["benchmark", "methods"])
def test_folders_cannot_be_imported_under_their_own_name(name):
    done = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "do not import it as" in done.stderr


def test_import_datasets_is_not_ours():
    code = "import importlib.util as u; s = u.find_spec('datasets'); print(s.origin if s else None)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert str(ROOT / "datasets") not in done.stdout


def test_importing_the_package_is_cheap():
    code = "import sys, overpaint, overpaint.cli; print([m for m in ('torch','diffusers','pandas','hydra') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_listing_methods_imports_nothing_heavy():
    code = (
        "import sys\nfrom overpaint.commands.list import lines\nrows = list(lines('methods'))\n"
        "assert any(r.startswith('uce') for r in rows)\n"
        "print([m for m in ('torch','diffusers','pandas','hydra') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_wheel_holds_overpaint_alone(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), str(ROOT)],
        check=True,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    import zipfile

    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {n.split("/")[0].split("-")[0] for n in names} == {"overpaint"}
    for needed in (
        "overpaint/conf/config.yaml",
        "overpaint/methods/uce.py",
        "overpaint/datasets/concepts/testbed.yaml",
    ):
        assert needed in names
    assert any(n.endswith("unet/diffusion_pytorch_model.safetensors") for n in names)
