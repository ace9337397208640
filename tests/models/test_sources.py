"""Identity of a path or Hub id: keys before and after a download, the snapshot of ``main``, the cache of hashes."""

import hashlib
import json
import os
import shutil
import threading
from types import SimpleNamespace

import huggingface_hub.constants
import pytest

import overpaint
from overpaint.grid.source_code import source_of
from overpaint.models import sources
from overpaint.models.families import FAMILIES, NAMES, check_pipeline, families, family
from overpaint.models.sources import (
    fingerprint_model,
    hub_commit,
    hub_snapshot,
    local_folder,
    model_family,
    model_family_source,
    remembered_hash,
)

NAME, SHA = "owner/tiny", "a" * 40


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    fingerprint_model.cache_clear()
    sources._pipeline.cache_clear()


@pytest.fixture
def hub(goldens, tmp_path, monkeypatch):
    """A fake Hub with one repository: the tiny pipeline with weights as large files, and a second variant."""
    files = {p.relative_to(goldens / "tiny_sd").as_posix(): p for p in (goldens / "tiny_sd").rglob("*") if p.is_file()}
    extra = tmp_path / "fp16.safetensors"
    extra.write_bytes(b"another variant")
    files |= {"unet/diffusion_pytorch_model.fp16.safetensors": extra, "README.md": extra}
    asked = []

    def sibling(name, file):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        return SimpleNamespace(rfilename=name, lfs=SimpleNamespace(sha256=digest) if name.endswith("tensors") else None)

    def model_info(self, name, revision=None, files_metadata=False, timeout=None):
        asked.append(revision)
        assert files_metadata and name == NAME and revision in ("main", SHA)
        return SimpleNamespace(sha=SHA, siblings=[sibling(*item) for item in files.items()])

    def download(repo, filename, revision=None):
        assert not filename.endswith(".safetensors"), "weights are not downloaded to know which they are"
        return str(place(tmp_path, filename, files[filename]))

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return SimpleNamespace(files=files, asked=asked)


def place(tmp_path, name, file, sha=SHA):
    """Put a file in the local cache of the Hub, whose ``main`` refers to a commit."""
    home = tmp_path / "hub" / "models--owner--tiny"
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs/main").write_text(SHA)
    copy = home / "snapshots" / sha / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, copy)
    return copy


def test_a_hub_model_has_one_key_before_and_after_its_download(hub, tmp_path, goldens):
    before = fingerprint_model(NAME)
    assert not before.startswith("hub:") and hub.asked == ["main"] and hub_snapshot(NAME) is None
    for name, file in hub.files.items():
        if "fp16" not in name:
            place(tmp_path, name, file)
    fingerprint_model.cache_clear()
    assert fingerprint_model(NAME) == before and hub.asked == ["main"], "a complete snapshot needs no hub"
    assert before == fingerprint_model(str(goldens / "tiny_sd")), "a local copy is the same model"


def test_another_file_of_the_repository_makes_another_key(hub, tmp_path):
    before = fingerprint_model(NAME)
    config = json.loads(hub.files["scheduler/scheduler_config.json"].read_text()) | {"beta_end": 0.013}
    (tmp_path / "scheduler.json").write_text(json.dumps(config))
    hub.files["scheduler/scheduler_config.json"] = tmp_path / "scheduler.json"
    fingerprint_model.cache_clear()
    assert fingerprint_model(NAME) != before
    hub.files["unet/diffusion_pytorch_model.safetensors"] = hub.files["README.md"]
    fingerprint_model.cache_clear()
    assert fingerprint_model(NAME) != before


def test_main_decides_the_snapshot_not_a_file_time(hub, tmp_path):
    other = "b" * 40
    for sha in (SHA, other):
        for name, file in hub.files.items():
            place(tmp_path, name, file, sha)
    snapshots = tmp_path / "hub/models--owner--tiny/snapshots"
    os.utime(snapshots / other, (2e9, 2e9))
    assert hub_snapshot(NAME) == local_folder(NAME) == snapshots / SHA
    (tmp_path / "hub/models--owner--tiny/refs/main").write_text(other)
    assert hub_snapshot(NAME) == snapshots / other
    for content in ("", "../../../etc", "c" * 40):
        (tmp_path / "hub/models--owner--tiny/refs/main").write_text(content)
        assert hub_snapshot(NAME) is None


@pytest.mark.parametrize(
    "lacking",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
    ],
)
def test_an_incomplete_snapshot_is_not_the_model(hub, tmp_path, lacking):
    for name, file in hub.files.items():
        if name != lacking:
            place(tmp_path, name, file)
    assert hub_snapshot(NAME) is None
    assert not fingerprint_model(NAME).startswith("hub:") and hub.asked == [SHA], "the cached commit is asked for"


def test_the_commit_of_a_network_is_the_same_before_and_after_its_download(tmp_path, monkeypatch):
    def model_info(self, name, timeout):
        assert name == NAME
        return SimpleNamespace(sha=SHA)

    hub_commit.cache_clear()
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    assert hub_commit(NAME) == SHA
    (tmp_path / "hub/models--owner--tiny/refs").mkdir(parents=True)
    (tmp_path / "hub/models--owner--tiny/refs/main").write_text(SHA)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", None)
    hub_commit.cache_clear()
    assert hub_commit(NAME) == SHA, "a cached network needs no hub"
    assert hub_commit("owner/other") is None and hub_commit("words") is None
    hub_commit.cache_clear()


def test_without_the_hub_the_name_stands_for_the_model(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    assert fingerprint_model(NAME) == f"hub:{NAME}"


def test_a_download_that_fails_is_told_in_one_sentence(monkeypatch):
    import diffusers

    def fails(*_, **__):
        raise OSError("owner/tiny is not a repository\nand more")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", fails)
    with pytest.raises(overpaint.UserError, match="cannot be downloaded: owner/tiny is not") as raised:
        overpaint.load_model(NAME)
    assert "\n" not in str(raised.value)


def told_of(code):
    """The hub's error of this class."""
    from huggingface_hub import errors

    answer = SimpleNamespace(headers={}, request=None)
    return getattr(errors, code)("401 Client Error. (Request ID: 1)\n\nSee the documentation.", response=answer)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (lambda: told_of("GatedRepoError"), "it is gated: accept its terms at .*/owner/tiny, and log in with: hf auth login"),
        (lambda: told_of("RepositoryNotFoundError"), "has no repository owner/tiny, or it is private .*hf auth login"),
        (lambda: huggingface_hub.errors.OfflineModeIsEnabled("offline"), "not in the hub's cache, and HF_HUB_OFFLINE is set"),
        (lambda: ConnectionError("Name or service not known\nand more"), "Name or service not known$"),
        (lambda: TimeoutError(), r"TimeoutError\(\)$"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("hidden", [False, True])
def test_why_the_hub_gives_no_files(monkeypatch, error, reason, hidden):
    """diffusers raises an error that refers to the stack trace."""
    import diffusers

    def fails(*_, **__):
        if hidden:
            raise OSError("Cannot load model owner/tiny: check the root cause in the stacktrace above.") from error()
        raise error()

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", fails)
    with pytest.raises(overpaint.UserError, match=f"^model.path={NAME} cannot be downloaded: .*{reason}") as raised:
        overpaint.load_model(NAME)
    assert "\n" not in str(raised.value) and "Client Error" not in str(raised.value)


def test_hashes_of_large_files_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "REMEMBERED_FROM", 1)
    counted = []
    plain = sources.file_hash
    monkeypatch.setattr(sources, "file_hash", lambda file: counted.append(file) or plain(file))
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = remembered_hash(file)
    assert remembered_hash(file) == first == hashlib.sha256(b"one").hexdigest() and len(counted) == 1
    file.write_bytes(b"three")
    assert remembered_hash(file) == hashlib.sha256(b"three").hexdigest() and len(counted) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "5", "[" * 10**5])
def test_a_damaged_memory_is_written_anew(tmp_path, monkeypatch, content):
    monkeypatch.setattr(sources, "REMEMBERED_FROM", 1)
    memory = sources._memory()
    memory.parent.mkdir(parents=True)
    memory.write_text(content)
    (tmp_path / "weights").write_bytes(b"one")
    assert remembered_hash(tmp_path / "weights") == hashlib.sha256(b"one").hexdigest()
    assert len(json.loads(memory.read_text())) == 1


def test_writers_at_once_lose_nothing(tmp_path):
    threads = [threading.Thread(target=sources._remember, args=(str(n), "x")) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sources._remembered() == {str(n): "x" for n in range(20)}
    assert {p.name for p in sources._memory().parent.iterdir()} <= {"hashes.json", "hashes.lock"}


def test_a_cache_folder_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "REMEMBERED_FROM", 1)
    (tmp_path / "cache").write_text("a file where the folder should be")
    (tmp_path / "weights").write_bytes(b"one")
    assert remembered_hash(tmp_path / "weights") == hashlib.sha256(b"one").hexdigest()


def test_families_of_other_packages_are_known(monkeypatch):
    entry = SimpleNamespace(name="OtherPipeline", value="overpaint.models.diffusion:DiffusionModel")
    with monkeypatch.context() as patched:
        patched.setattr(
            "overpaint.models.families.entry_points", lambda group: [entry] * (group == "overpaint.families")
        )
        families.cache_clear()
        assert families() == FAMILIES | {"OtherPipeline": entry.value}
        check_pipeline("OtherPipeline", "here")
    families.cache_clear()
    with pytest.raises(overpaint.UserError, match="unknown pipeline class 'FluxPipelin' in here"):
        check_pipeline("FluxPipelin", "here")


def test_families_are_named_as_their_classes_name_themselves():
    assert NAMES.keys() == FAMILIES.keys()
    assert {name: family(name, "here").family for name in FAMILIES} == NAMES


def test_the_family_of_a_folder_is_known_from_its_index(goldens, tiny_sdxl_folder, tmp_path):
    assert model_family("testbed") == model_family(str(goldens / "tiny_sd")) == "sd"
    shutil.copy(tiny_sdxl_folder / "model_index.json", tmp_path)
    assert model_family(str(tmp_path)) == "sdxl"


def test_the_family_of_a_hub_model_is_known_before_its_weights_are_downloaded(hub, tmp_path):
    assert model_family(NAME) == "sd" and hub.asked == ["main"]
    assert not list((tmp_path / "hub").rglob("*.safetensors"))


def test_without_the_hub_the_family_is_not_known(monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: 1 / 0)
    assert model_family(NAME) is None and model_family_source(NAME) == {}


def test_a_hub_pipeline_of_no_family_is_refused(hub, tmp_path):
    (tmp_path / "index.json").write_text('{"_class_name": "FluxPipeline"}')
    hub.files["model_index.json"] = tmp_path / "index.json"
    with pytest.raises(overpaint.UserError, match=r"unknown pipeline class 'FluxPipeline' in model\.path=owner/tiny"):
        model_family(NAME)


def test_the_source_of_another_packages_family_counts(monkeypatch, tmp_path, goldens):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "sculptor.py").write_text("class Sculpture: family = 'sculpture'")
    monkeypatch.setitem(families(), "StableDiffusionPipeline", "sculptor:Sculpture")
    found = model_family_source(str(goldens / "tiny_sd"))
    assert found == {"model family StableDiffusionPipeline": source_of("sculptor:Sculpture")}
    monkeypatch.undo()
    assert model_family_source(str(goldens / "tiny_sd")) == {}
