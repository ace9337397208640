"""`overpaint fetch` against a local server: resumed, verified, converted, offline, on a full disk and in two processes."""

import io
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
from hashlib import sha256
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from file_server import serving
from overpaint.cli import main
from overpaint.commands import downloads
from overpaint.errors import AssetMissing
from overpaint.grid.assets import asset
from overpaint.grid.registry import look_in

ROOT = Path(__file__).resolve().parents[2]
CONTENT = np.random.default_rng(0).bytes(3 << 20)


@pytest.fixture(scope="module")
def running():
    with serving() as server:
        yield server


@pytest.fixture
def server(running):
    running.files, running.cuts, running.asked, running.ranges = {}, [], [], True
    return running


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """``conf(name, source, files)`` writes an asset's YAML into a folder of ``hydra.searchpath``."""
    folder = tmp_path / "conf"
    (folder / "asset").mkdir(parents=True)
    monkeypatch.setenv("OVERPAINT_ASSETS", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "TIMEOUT", 5)

    def write(name, source, files):
        about = {"summary": "some weights", "licence": "MIT", "purpose": "a test"}
        text = yaml.safe_dump({"name": name, "source": source, "files": files, **about})
        (folder / "asset" / f"{name}.yaml").write_text(text)
        look_in(folder)

    yield write
    look_in()


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command line; returns (exit code, stdout, stderr)."""

    def call(*arguments, places=True):
        place = [f"hydra.searchpath=[file://{tmp_path}/conf]"] if places else []
        monkeypatch.setattr(sys, "argv", ["overpaint", *arguments, *place])
        try:
            main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code or 0
        out, err = capsys.readouterr()
        return code, " ".join(out.split()), " ".join(err.split())

    return call


def known(content, **more):
    return {"sha256": sha256(content).hexdigest(), "bytes": len(content), **more}


def fetched(name):
    return downloads.fetch_asset(asset(name), lambda *_: None)


def test_files_below_a_url_are_fetched_once_and_hashed(server, conf, run):
    server.files = {"/some%20lists/a.csv": b"prompt\na cat\n", "/some%20lists/deep/b.bin2": CONTENT}
    files = {"a.csv": known(b"prompt\na cat\n"), "deep/b.bin2": {"sha256": None, "bytes": None}}
    conf("lists", f"{server.address}/some%20lists", files)
    assert not asset("lists").present()
    code, out, err = run("fetch", "asset=lists")
    assert code == 0 and "trusted on first use: deep/b.bin2" in out and "licence: MIT" in out
    assert "deep/b.bin2 (3.15 MB)" in err
    folder = asset("lists").path()
    assert (folder / "deep" / "b.bin2").read_bytes() == CONTENT
    assert asset("lists").hashes() == {"a.csv": files["a.csv"]["sha256"], "deep/b.bin2": sha256(CONTENT).hexdigest()}
    assert sorted(p.name for p in folder.rglob("*")) == ["a.csv", "asset.json", "b.bin2", "deep"]
    assert [p.name for p in folder.parent.iterdir() if not p.name.endswith(".lock")] == ["lists"]
    asked = len(server.asked)
    code, out, _ = run("fetch", "asset=lists")
    assert code == 0 and "present" in out and len(server.asked) == asked


@pytest.mark.parametrize("cuts", [[1 << 20], [1 << 20, 1000, 5]])
def test_a_lost_connection_is_continued_where_it_stopped(server, conf, cuts):
    server.files, server.cuts = {"/w.onnx": CONTENT}, list(cuts)
    conf("weights", server.address, {"w.onnx": known(CONTENT)})
    assert (fetched("weights") / "w.onnx").read_bytes() == CONTENT
    assert len(server.asked) == len(cuts) + 1
    assert server.bytes_sent("/w.onnx") == len(CONTENT), "no byte is sent twice"


def test_a_later_command_continues_an_interrupted_download(server, conf):
    server.files, server.cuts = {"/w.onnx": CONTENT, "/small": b"s"}, [2 << 20, 0, 0, 0]
    conf("weights", server.address, {"small": known(b"s"), "w.onnx": known(CONTENT)})
    server.cuts.insert(0, 1)  # the small file is whole
    with pytest.raises(downloads.DownloadFailed, match="run the command again to continue"):
        fetched("weights")
    assert not asset("weights").present()
    server.asked.clear()
    fetched("weights")
    assert server.bytes_sent("/w.onnx") == len(CONTENT) - (2 << 20)
    assert server.bytes_sent("/small") == 0, "a finished file is not downloaded again"


def test_a_receipt_that_a_crash_cut_off_counts_as_none(server, conf):
    server.files = {"/w.onnx": CONTENT}
    conf("weights", server.address, {"w.onnx": known(CONTENT)})
    partial = asset("weights").folder.with_name(".weights.partial")
    partial.mkdir(parents=True)
    (partial / "w.onnx").write_bytes(CONTENT)
    (partial / "w.onnx.done").write_text('{"sha256": ')
    folder = fetched("weights")
    for text in ("{", "[]", '{"files": {"w.onnx": {}}}', '{"files": {"w.onnx": 1}}'):
        (folder / "asset.json").write_text(text)
        assert not asset("weights").present()


def test_a_file_that_changed_in_between_is_downloaded_from_its_start(server, conf):
    server.files, server.cuts = {"/w.onnx": b"x" * 100}, [50, 0, 0, 0]
    conf("weights", server.address, {"w.onnx": {"sha256": None, "bytes": None}})
    with pytest.raises(downloads.DownloadFailed):
        fetched("weights")
    server.files["/w.onnx"] = b"y" * 100
    assert (fetched("weights") / "w.onnx").read_bytes() == b"y" * 100


def test_a_server_without_ranges_sends_the_file_again(server, conf):
    server.files, server.cuts, server.ranges = {"/w.onnx": CONTENT}, [1 << 20], False
    conf("weights", server.address, {"w.onnx": known(CONTENT)})
    assert (fetched("weights") / "w.onnx").read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_the_file_removed(server, conf, run, tmp_path):
    server.files = {"/w.onnx": b"other"}
    conf("weights", server.address, {"w.onnx": known(CONTENT)})
    code, _, err = run("fetch", "asset=weights")
    assert code == 1
    expected = f"w.onnx has the SHA-256 {sha256(b'other').hexdigest()}, expected {sha256(CONTENT).hexdigest()}"
    assert f"overpaint: asset=weights: {expected}; the download was removed" in err
    assert not asset("weights").present() and not list((tmp_path / "cache").rglob("w.onnx"))
    server.files = {"/w.onnx": CONTENT}
    fetched("weights")


def test_one_asset_that_fails_does_not_stop_the_others(server, conf, run):
    server.files = {"/b": b"b"}
    conf("one", server.address, {"a": known(b"a")})
    conf("two", server.address, {"b": known(b"b")})
    code, out, err = run("fetch", "asset=one,two")
    assert code == 1 and "HTTP 404" in err and "asset=two: fetched" in out


def test_no_network_is_one_sentence(conf, run):
    conf("weights", "http://127.0.0.1:9", {"w.onnx": known(CONTENT)})
    code, _, err = run("fetch", "asset=weights")
    assert code == 1
    assert "asset=weights: w.onnx cannot be downloaded from 127.0.0.1:9" in err and "refused" in err
    assert "copy the folder" in err


def test_a_full_disk_is_one_sentence_and_nothing_is_downloaded(server, conf, run, monkeypatch):
    server.files = {"/w.onnx": CONTENT}
    conf("weights", server.address, {"w.onnx": known(CONTENT)})
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: full)
    code, _, err = run("fetch", "asset=weights")
    assert code == 1 and "No space left on device; OVERPAINT_ASSETS selects another folder" in err


def test_a_cache_that_cannot_be_written_is_one_sentence(server, conf, run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OVERPAINT_ASSETS", str(tmp_path / "file"))
    conf("weights", server.address, {"w.onnx": known(CONTENT)})
    code, _, err = run("fetch", "asset=weights")
    assert code == 1 and f"cannot be written to {tmp_path / 'file'}" in err


def test_files_that_a_person_put_there_are_taken_if_their_hash_is_right(server, conf, tmp_path):
    conf("weights", server.address, {"w.onnx": known(CONTENT)})
    given = tmp_path / "cache" / "weights" / "w.onnx"
    given.parent.mkdir(parents=True)
    given.write_bytes(CONTENT)
    assert not asset("weights").present(), "it is not verified yet"
    fetched("weights")
    assert asset("weights").present() and not server.asked
    given.write_bytes(b"too short")
    with pytest.raises(AssetMissing, match=r"lacks w\.onnx"):
        asset("weights").path()


def test_a_page_tells_what_to_download_by_hand(conf, run, tmp_path):
    conf("weights", "page:https://example.org/drive", {"w.onnx": {"sha256": None, "bytes": None}})
    code, _, err = run("fetch", "asset=weights")
    assert code == 1 and "w.onnx has to be downloaded by hand from https://example.org/drive (MIT)" in err
    place = Path(re.search(r"put it at (\S+) ", err)[1])
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    assert run("fetch", "asset=weights")[0] == 0
    assert asset("weights").hashes() == {"w.onnx": sha256(CONTENT).hexdigest()}


def test_a_member_of_an_archive_is_extracted(server, conf):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in {"res/labels.csv": b"a,b\n", "res/w.onnx": CONTENT}.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    server.files, url = {"/res.tar.gz": packed.getvalue()}, f"{server.address}/res.tar.gz"
    files = {"labels.csv": known(b"a,b\n", url=url, member="res/labels.csv")}
    files["w.onnx"] = known(CONTENT, url=url, member="res/w.onnx")
    conf("weights", server.address, files)
    folder = fetched("weights")
    assert (folder / "w.onnx").read_bytes() == CONTENT and len(server.asked) == 1
    assert sorted(p.name for p in folder.iterdir()) == ["asset.json", "labels.csv", "w.onnx"]
    conf("lacking", server.address, {"x": {"url": url, "member": "res/x"}})
    with pytest.raises(downloads.DownloadFailed, match="res/x cannot be read from the downloaded archive"):
        fetched("lacking")


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_checkpoint_becomes_safetensors_once(server, conf, zipped):
    weight = torch.arange(6.0).view(2, 3).T
    content = saved({"model": {"w": weight, "again": weight}, "epoch": 3}, _use_new_zipfile_serialization=zipped)
    server.files = {"/net.pth": content}
    conf("weights", server.address, {"net.pth": known(content)})
    folder = fetched("weights")
    assert [p.name for p in folder.iterdir() if p.name != "asset.json"] == ["net.safetensors"]
    assert asset("weights").file("net.pth") == folder / "net.safetensors"
    found = load_file(folder / "net.safetensors")
    assert found.keys() == {"model.w", "model.again"} and torch.equal(found["model.w"], weight)
    assert asset("weights").hashes() == {"net.pth": sha256(content).hexdigest()}, "the hash is the published file's"


def test_transformers_reads_a_converted_checkpoint(server, conf):
    from transformers import ViTConfig, ViTForImageClassification

    model = ViTForImageClassification(
        ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=16)
    )
    server.files = {
        "/pytorch_model.bin": saved(model.state_dict()),
        "/config.json": model.config.to_json_string().encode(),
    }
    conf("vit", server.address, {"config.json": {}, "pytorch_model.bin": {}})
    again = ViTForImageClassification.from_pretrained(fetched("vit"), use_safetensors=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("net.pth", saved({"w": Harmful()})),
        ("net.bin", pickle.dumps(Harmful())),
        ("prompts.p", pickle.dumps(Harmful())),
        ("net.ckpt", b"no checkpoint"),
        ("net.pt", saved({"epoch": 3})),
    ],
)
def test_nothing_in_a_pickle_is_run(server, conf, tmp_path, monkeypatch, name, content):
    monkeypatch.chdir(tmp_path)
    server.files = {f"/{name}": content}
    conf("weights", server.address, {name: known(content)})
    with pytest.raises(downloads.DownloadFailed, match=r"asset=weights: .* (tensors only|holds no tensors)"):
        fetched("weights")
    assert not (tmp_path / "harmed").exists() and not asset("weights").present()


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_a_pickled_array_of_any_numpy_becomes_safetensors(server, conf, module):
    array = np.random.default_rng(0).normal(size=(2, 768)).astype(np.float16)
    content = re.sub(rb"numpy\._?core\.multiarray", module, pickle.dumps(array, protocol=3))
    assert module in content
    server.files = {"/prompts.p": content}
    conf("prompts", server.address, {"prompts.p": known(content)})
    found = load_file(fetched("prompts") / "prompts.safetensors")["array"]
    assert np.array_equal(found.numpy(), array)


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """The local server as the hub."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return server


def test_files_of_the_hub_are_resumed_and_checked_by_the_hash_that_the_hub_states(hub, conf, monkeypatch):
    hub.files, hub.cuts = {"/owner/name/resolve/abc/w.safetensors": CONTENT}, [1 << 20]
    conf("weights", "hub:owner/name@abc", {"w.safetensors": {"sha256": None, "bytes": None}})
    assert (fetched("weights") / "w.safetensors").read_bytes() == CONTENT
    path = "/owner/name/resolve/abc/w.safetensors"
    assert hub.bytes_sent(path) == len(CONTENT)
    conf("other", "hub:owner/name@abc", {"w.safetensors": {"sha256": None, "bytes": None}})
    stated = huggingface_hub.get_hf_file_metadata

    def wrong(url, **options):
        told = stated(url, **options)
        return type(told)(**{**vars(told), "etag": "0" * 64})

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", wrong)
    with pytest.raises(downloads.DownloadFailed, match=f"expected {'0' * 64}"):
        fetched("other")


def test_a_data_set_of_the_hub(hub, conf):
    hub.files = {"/datasets/owner/name/resolve/main/p.csv": b"prompt\na\n"}
    conf("prompts", "hub:datasets/owner/name@main", {"p.csv": {}})
    assert (fetched("prompts") / "p.csv").read_bytes() == b"prompt\na\n"


def test_a_file_in_the_hubs_own_cache_is_taken_from_there(hub, conf, tmp_path):
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "w.onnx").write_bytes(CONTENT)
    conf("weights", "hub:owner/name@abc", {"w.onnx": known(CONTENT)})
    fetched("weights")
    assert not hub.asked


def test_an_offline_hub_is_one_sentence(hub, conf, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    conf("weights", "hub:owner/name@abc", {"w.onnx": known(CONTENT)})
    with pytest.raises(
        downloads.DownloadFailed, match=r"asset=weights: w\.onnx cannot be downloaded from 127\.0\.0\.1"
    ):
        fetched("weights")


def test_two_commands_at_once_download_once(server, conf, tmp_path):
    """Whole processes; the hub's address and the cache come from the environment, as on a cluster."""
    server.files = {"/owner/name/resolve/abc/w.onnx": CONTENT}
    server.cuts = [1 << 20]
    conf("weights", "hub:owner/name@abc", {"w.onnx": known(CONTENT)})
    environment = {**os.environ, "HF_ENDPOINT": server.address, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    environment["HF_HOME"] = str(tmp_path / "hf")
    command = [sys.executable, "-m", "overpaint.cli", "fetch", "asset=weights"]
    command.append(f"hydra.searchpath=[file://{tmp_path}/conf]")
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert server.bytes_sent("/owner/name/resolve/abc/w.onnx") == len(CONTENT)
    assert (asset("weights").path() / "w.onnx").read_bytes() == CONTENT


def test_a_grid_whose_asset_is_missing_stops_before_anything_runs(server, conf, run, tmp_path):
    text = b"prompt\na photo of a church\n"
    server.files = {"/list.csv": text}
    conf("lists", server.address, {"list.csv": known(text)})
    asked = [
        "concepts=church",
        "concepts.prompts.target='asset:lists/list.csv'",
        "budget=smoke",
        f"store={tmp_path}/store",
    ]
    code, _, err = run("run", *asked)
    assert code == 2 and err.startswith("overpaint: asset=lists (some weights) is not in ")
    assert err.endswith("; get it with: overpaint fetch asset=lists")
    code, out, _ = run("plan", *asked)
    assert code == 0 and "missing: asset=lists (some weights) is not in " in out
    assert not (tmp_path / "store").exists()
    code, out, _ = run("fetch", *asked)
    assert code == 0 and "asset=lists: fetched" in out
    code, out, _ = run("plan", *asked)
    assert code == 0 and "generate" in out and "missing: " not in out


def test_the_prompts_of_an_asset_have_the_same_keys_wherever_the_cache_is(server, conf, tmp_path, monkeypatch):
    from overpaint.grid.cells import cell_from
    from overpaint.grid.composition import compose_cells

    text = b"prompt\na photo of a church\n"
    server.files = {"/list.csv": text}
    conf("lists", server.address, {"list.csv": {}})
    found = []
    for cache, attack in (("one", "lists"), ("two", "lists")):
        monkeypatch.setenv("OVERPAINT_ASSETS", str(tmp_path / cache))
        fetched("lists")
        composed = compose_cells(
            [f"hydra.searchpath=[file://{tmp_path}/conf]", "attack=replay", f"attack.file='asset:{attack}/list.csv'"]
        )[0]
        found.append(cell_from(composed.config, composed.explicit).identity)
    assert found[0] == found[1]
    server.files["/list.csv"] = b"prompt\nanother\n"
    monkeypatch.setenv("OVERPAINT_ASSETS", str(tmp_path / "three"))
    fetched("lists")
    assert cell_from(composed.config, composed.explicit).identity != found[0]


def test_bad_input_is_refused(conf, run):
    conf("weights", "hub:owner/name@abc", {"w.onnx": {}})
    for arguments, parts in {
        ("asset=weigths",): ["'weigths'", "did you mean 'weights'"],
        ("asset=weights", "method=uce"): ["not both", "method=uce"],
        ("methd=uce",): ["'methd'", "did you mean 'method'"],
    }.items():
        code, _, err = run("fetch", *arguments)
        assert code == 2 and all(part in err for part in parts), err
    conf("weights", "ftp://x", {"w.onnx": {}})
    assert "source takes hub:owner/name@revision" in run("fetch", "asset=weights")[2]
    conf("weights", "https://x", {"../w.onnx": {}})
    assert "not a path inside the asset's folder" in run("fetch", "asset=weights")[2]
    conf("weights", "https://x", {"w.onnx": {"sha256": "abc"}})
    code, _, err = run("fetch", "asset=weights")
    assert code == 2 and "file w.onnx: sha256 takes 64 hexadecimal digits or null, got 'abc'" in err


def test_doctor_and_list_show_assets(server, conf, run):
    server.files = {"/w.onnx": CONTENT}
    conf("weights", server.address, {"w.onnx": known(CONTENT)})
    _, out, _ = run("doctor")
    assert "asset weights: MISSING, 3.15 MB, licence MIT; overpaint fetch asset=weights" in out
    assert "asset nudenet_320n: " in out
    fetched("weights")
    assert "asset weights: present, 3.15 MB, licence MIT" in run("doctor")[1]
    _, out, _ = run("list", "assets")
    assert "weights" in out and "some weights · 3.15 MB · MIT · a test" in out


def test_a_receipt_of_another_source_does_not_count(server, conf):
    server.files = {"/w.onnx": CONTENT, "/v2/w.onnx": CONTENT[:10]}
    conf("weights", server.address, {"w.onnx": {}})
    fetched("weights")
    conf("weights", f"{server.address}/v2", {"w.onnx": {}})
    with pytest.raises(AssetMissing, match="from another source"):
        asset("weights").path()
    assert (fetched("weights") / "w.onnx").read_bytes() == CONTENT[:10]
    receipt = json.loads((asset("weights").path() / "asset.json").read_text())
    assert receipt["source"] == f"{server.address}/v2"


def test_models_of_the_hub_are_fetched_too(conf, run, monkeypatch):
    fetched_models = []
    monkeypatch.setattr("overpaint.images.track.local_folder", lambda path: fetched_models.append(path) or "there")
    grid = ["model=sd14,sd15", "concepts=inline", "concepts.erase=[tench]", "model.detector=null"]
    code, out, _ = run("fetch", *grid)
    assert code == 0 and fetched_models == [
        "CompVis/stable-diffusion-v1-4",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ]
    assert "model CompVis/stable-diffusion-v1-4: fetched to there" in out
    monkeypatch.setattr("overpaint.images.track.hub_snapshot", lambda name: "here")
    assert run("fetch", *grid)[1] == "nothing to fetch: this grid needs no asset"
    assert run("fetch")[1] == "nothing to fetch: the demo needs no asset"


def test_networks_that_methods_and_attacks_name_are_fetched_too(conf, run, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--x--erased"
    commit = "0" * 40
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots" / commit).mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (cached / "snapshots" / commit / name).write_text("{}")
    pipelines, networks = [], []
    monkeypatch.setattr("huggingface_hub.HfApi.file_exists", lambda self, name, file: name == "x/base")
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, allow_patterns: networks.append(name) or "there"
    )
    monkeypatch.setattr("overpaint.models.sources.local_folder", lambda name, where: pipelines.append(name) or "here")
    grid = ["concepts=church", "attack=none", "method=checkpoint,prompt_filter", "checkpoint.file=x/erased"]
    grid += [
        "checkpoint.transfer=true",
        "checkpoint.base=x/base",
        "prompt_filter.rule=embedding",
        "prompt_filter.clip=x/clip",
    ]
    code, out, _ = run("fetch", *grid, "prompt_filter.threshold=0.5")
    assert code == 0 and (networks, pipelines) == (["x/clip"], ["x/base"])
    assert "model x/clip: fetched to there" in out and "x/erased" not in out, "it is in the cache"


def test_weights_of_detectors_and_extractors_are_fetched(conf, run, monkeypatch):
    fetched = []
    monkeypatch.setattr(
        "overpaint.commands.fetch.fetch_asset", lambda asset, report: fetched.append(asset.name) or "there"
    )
    monkeypatch.setattr("overpaint.grid.assets.Asset.present", lambda self: False)
    monkeypatch.setattr("overpaint.images.track.has_network", lambda name: False)
    monkeypatch.setattr("overpaint.images.track.hub_network", lambda name: fetched.append(name) or "there")
    grid = ["model=testbed", "concepts=church", "method=none", "attack=none", "metrics=hub"]
    code, out, _ = run("fetch", *grid, "metrics.extractors.asked=vlm_prompt")
    assert code == 0 and {"pickscore", "image_reward"} <= set(fetched)
    assert "model Qwen/Qwen2.5-VL-3B-Instruct: fetched to there" in out
    fetched.clear()
    assert run("fetch", "concepts=church", "model.detector=vlm")[0] == 0 and fetched == ["Qwen/Qwen2.5-VL-3B-Instruct"]
