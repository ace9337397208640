"""Bad input: an error of one sentence with key, value, choices and nearest match; exit code 2; no output is written."""

import os
import re
import sys

import pytest

import overpaint
from overpaint.cli import main
from overpaint.errors import UserError


@pytest.fixture(name="run")
def command_line(tmp_path, monkeypatch, capsys):
    """Run the command line in an empty folder; returns (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OVERPAINT_STORE", raising=False)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["overpaint", *arguments])
        try:
            main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code or 0
        return code, " ".join(capsys.readouterr().err.split())

    yield call


CASES = [
    (("run", "method=essd"), ["'essd'", "did you mean 'esd'", "uce"]),
    (("run", "methd=uce"), ["'methd'", "did you mean 'method'"]),
    (("run", "protocol.stps=10"), ["'stps'", "protocol", "did you mean 'steps'"]),
    (("run", "budget.seeds=many"), ["budget.seeds takes int from 1 to 1000, got 'many'"]),
    (("run", "budget.seeds=0"), ["budget.seeds takes int from 1 to 1000, got 0"]),
    (("run", "method=esd", "method.iteratons=5"), ["'iteratons'", "method", "did you mean 'iterations'"]),
    (("run", "method=uce", "method.lamb=much"), ["method=uce: lamb takes a finite number, got 'much'"]),
    (("run", "method=uce", "method.variant=currnt"), ["'currnt'", "did you mean 'current'"]),
    (("run", "method=esd", "method.preset=tesbed"), ["preset 'tesbed'", "did you mean 'testbed'"]),
    (("run", "model.preset=tesbed"), ["preset 'tesbed' in model.preset", "did you mean 'testbed'"]),
    (
        ("run", "method=mace", "method.prior_captions=testbed/caption"),
        ["'testbed/caption'", "did you mean 'testbed/captions'"],
    ),
    (("run", "method=ca", "method.captions=missing.csv"), ["caption collection 'missing.csv'", "testbed/captions"]),
    (("run", "method=salun", "method.folder=missing"), ["folder=missing is not a folder"]),
    (("run", "concepts.erase=[curch]"), ["concept 'curch'", "did you mean 'church'"]),
    (("run", "concepts=inline"), ["nothing to erase"]),
    (("run", "concepts.templates=[no place]"), ["'no place' has no {}"]),
    (("run", "model=local"), ["model.path has no value"]),
    (("run", "model=local", "model.path=./nowhere"), ["model.path=./nowhere does not exist"]),
    (("run", "model=local", "model.path=model.ckpt"), ["pickle checkpoint", "safetensors"]),
    (("run", "method=[uce"), ["override"]),
    (("run", "concepts.prompts.target=missing.csv"), ["prompt file missing.csv does not exist"]),
    (("run", "concepts.prompts.targt=x.csv"), ["'targt'", "did you mean 'target'"]),
    (("list", "metods"), ["'metods'", "did you mean 'methods'"]),
    (("table", "--format", "xls"), ["format 'xls'", "csv"]),
    (("table",), ["there is no store"]),
    (("erase", "method=uce"), ["out=FILE.safetensors"]),
    (("erase", "method=uce", "out=x.pt"), ["must end in .safetensors"]),
    (("export", "erasure=none.safetensors", "out=d"), ["none.safetensors does not exist"]),
    (("run", "attack=replay"), ["attack.file=FILE.csv"]),
    (("run", "attack=replay", "attack.file=missing.csv"), ["prompt file missing.csv does not exist"]),
    (("export", "attack=abc", "out=x.csv"), ["attack=abc", "neither an attack's name nor the key"]),
    (("export", "attack=cce", "out=x.txt"), ["must end in .csv"]),
    # overrides that Hydra itself would accept or fail on
    (("run", "+foo=1"), ["unknown key 'foo' in the configuration", "allowed: attack"]),
    (("run", "method=uce", "+method.lam=1"), ["unknown hyper-parameter 'lam' in method=uce; did you mean 'lamb'"]),
    (("run", "~method"), ["a run needs one option of method"]),
    (("run", "=3"), ["'=3': there is no key before the ="]),
    (("run", "method="), ["unknown method ''", "uce"]),
    (("run", "method=null"), ["unknown method 'null'"]),
    (("run", "concepts=[church,cat]"), ["concepts takes one option; several without brackets are an axis"]),
    (("run", "experiment=demo,smoke"), ["run one after the other"]),
    (("plan", "store=a,b", "budget=smoke"), ["store says where and how the whole grid runs"]),
    (("run", "store=[a]", "budget=smoke"), ["store takes str or null, got ['a']"]),
    (("rn",), ["unknown command 'rn'", "did you mean 'run'"]),
    (("table", "--formt", "md"), ["No such option '--formt'. Did you mean '--format'?"]),
    (("doctor", "strore=x"), ["doctor takes store=DIR and hydra.searchpath=[…], got strore=x"]),
    (("erase", "concepts=church", "out=x.safetensors"), ["method=none erases nothing"]),
    (("erase", "method=uce", "out=no/x.safetensors"), ["out=no/x.safetensors: the folder no does not exist"]),
    (("export", "attack=uda", "out=no/x.csv"), ["out=no/x.csv: the folder no does not exist"]),
    (("export", "attack=synonym", "out=x.csv"), ["attack=synonym has nothing to export: its prompts are fixed"]),
    (("export", "erasure=/", "out=d"), ["/ is not an overpaint erasure file"]),
    (("run", "attack=multilingual", "attack.languages=[xx]"), ["unknown language 'xx' in attack=multilingual"]),
    (("run", "attack=multilingual", "attack.languages=[]"), ["languages takes at least one language code"]),
    # values out of their range
    (("run", "seed=-1"), ["seed takes int from 0 to 9223372036854775807, got -1"]),
    (("run", "budget.grid=-1"), ["budget.grid takes int from 0 up, got -1"]),
    (("run", "protocol.scheduler=ddmi"), ["unknown value 'ddmi' in protocol.scheduler; did you mean 'ddim'"]),
    (("run", "protocol.steps=2000"), ["protocol.steps takes int from 1 to 1000, got 2000"]),
    (("run", "protocol.size=0"), ["protocol.size takes int from 1 to 8192 or null, got 0"]),
    (("run", "protocol.guidance_scale=nan"), ["protocol.guidance_scale takes a number from 0 to 1000, got nan"]),
    (("run", "metrics.threshold=2"), ["metrics.threshold takes a number from 0 to 1, got 2"]),
    (("run", "model.precision=float8"), ["unknown value 'float8' in model.precision; did you mean 'float64'"]),
    (("run", "model.judge=orcale"), ["unknown detector 'orcale' in model.judge; did you mean 'oracle'"]),
    (("run", "method=uce", "method.lamb=-1"), ["method=uce: lamb takes a number from 0 up, got -1.0"]),
    (("run", "method=uce", "method.lamb=inf"), ["method=uce: lamb takes a finite number, got inf"]),
    (("run", "attack=uda", "attack.timesteps=[a]"), ["attack=uda: timesteps takes int or list[int], got ['a']"]),
    (("run", "engine.device=cdua"), ["engine.device=cdua is not a device of this machine"]),
    (
        ("run", "tracker=wandb", "tracker.mode=offlin"),
        ["unknown value 'offlin' in tracker=wandb: mode; did you mean 'offline'"],
    ),
    (("run", "+engine.workers=3"), ["'workers'", "engine=inline"]),
    # values of another type
    (("run", "attack=cce", "attack.floor=maybe"), ["attack=cce: floor takes bool, got 'maybe'"]),
    (
        ("run", "attack=cce", "attack.control=seed"),
        ["unknown control 'seed' in attack=cce; did you mean 'seed_search'"],
    ),
    (("run", "attack=cce", "attack.summary=mine"), ["attack=cce: summary describes the component and cannot be set"]),
    (("run", "concepts.near=5"), ["concepts.near takes str or list[str] or null, got 5"]),
    (("run", "concepts.anchor=[5]"), ["concepts.anchor takes str or list[str] or null, got [5]"]),
    (("run", "concepts.kind=stile"), ["unknown value 'stile' in concepts.kind; did you mean 'style'"]),
    (("run", "concepts.catalogue=5"), ["concepts.catalogue takes str or null, got 5"]),
    (("run", "concepts.templates=[5]"), ["concepts.templates takes list[str] or null, got [5]"]),
    (("run", "concepts.templates=['{} {x}']"), ["'{} {x}' has braces besides one {}"]),
    (
        ("run", "concepts.prompts=x.csv"),
        ["concepts.prompts takes dict[str, str | dict[str, Any] | None] or null, got 'x.csv'"],
    ),
    (("run", "concepts.prompts.target=5"), ["concepts.prompts.target takes str or dict[str, Any] or null, got 5"]),
    (("run", "concepts.erase=[church,church]"), ["church cannot be erased twice in one request"]),
    (("run", "concepts.erase=[church]", "concepts.retain=[church]"), ["church cannot be erased and retained"]),
    (
        ("run", "concepts.catalogue=null", "concepts.erase=[Dog]", "concepts.retain=[' dog']"),
        ["dog cannot be erased and retained in one request"],
    ),
    (("run", "metrics.metrics.ua=3"), ["metrics.metrics.ua takes str, got 3"]),
    (
        ("run", "metrics.metrics.ua=os:getcwd"),
        ["metrics.metrics.ua: 'os:getcwd'", "there is no module 'os' in overpaint"],
    ),
    (
        ("run", "metrics.metrics.ua=nowhere:X"),
        ["metrics.metrics.ua: 'nowhere:X'", "there is no module 'nowhere' in overpaint"],
    ),
]


@pytest.mark.parametrize(("arguments", "said"), CASES, ids=[" ".join(a) for a, _ in CASES])
def test_one_sentence_and_exit_code_2(run, tmp_path, arguments, said):
    code, err = run(*arguments)
    assert code == 2, err
    for part in said:
        assert part in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_csv_without_prompt_column(run, tmp_path):
    (tmp_path / "p.csv").write_text("sentence,seed\nhello,1\n")
    code, err = run("run", "concepts.prompts.target=p.csv")
    assert code == 2
    assert "has no 'prompt' column (its columns: sentence, seed)" in err


def test_csv_without_a_prompt(run, tmp_path):
    (tmp_path / "p.csv").write_text("prompt\n\n")
    code, err = run("run", "concepts.prompts.target=p.csv")
    assert code == 2 and "no prompt in it" in err


@pytest.mark.parametrize(
    "content, said",
    [
        (b"prompt\n\xe9glise\n", "line 2 is not in UTF-8; save it as UTF-8"),
        (b"prompt,seed\nhello,inf\n", "line 2: seed takes a whole number, got 'inf'"),
        (b"prompt,seed\nhello,1.5\n", "line 2: seed takes a whole number, got '1.5'"),
        (b"prompt,seed\nhello,-1\n", "line 2: seed takes a number from 0 to 2**63 - 1, got -1"),
        (b"prompt,evaluation_guidance\nhello,nan\n", "line 2: guidance takes a finite number, got 'nan'"),
        (b"prompt,evaluation_guidance\nhello,0\n", "line 2: guidance takes a number above 0 and up to 1000, got 0"),
    ],
)
@pytest.mark.parametrize("key", ["concepts.prompts.target", "attack=replay attack.file"])
def test_csv_that_cannot_be_used(run, tmp_path, key, content, said):
    (tmp_path / "p.csv").write_bytes(content)
    code, err = run("run", *f"{key}=p.csv".split())
    assert code == 2 and f"p.csv {said}" in err
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


def test_a_catalogue_that_is_none(run, tmp_path):
    listed = "concepts: {church: {}}\nunseen: [rocket]\n"
    for content, said in (
        ("church: {}\n", "has no mapping 'concepts'"),
        ("a: [\n", "is not YAML: did not find expected node content (line 2)"),
        (listed, ".yaml: unseen takes dict[str, dict[str, Any] | None], got ['rocket']"),
    ):
        (tmp_path / f"{len(content)}.yaml").write_text(content)
        code, err = run("run", f"concepts.catalogue={len(content)}.yaml")
        assert code == 2 and said in err


def test_plan_of_a_budget_too_small_to_detect_anything(run, capsys):
    assert run("plan", "budget=smoke") == (0, "")


def test_folder_that_is_no_pipeline(run, tmp_path):
    (tmp_path / "m").mkdir()
    code, err = run("run", "model=local", "model.path=./m")
    assert code == 2 and "no model_index.json" in err


def test_pickle_weights_in_a_folder(run, tmp_path):
    (tmp_path / "m" / "unet").mkdir(parents=True)
    (tmp_path / "m" / "model_index.json").write_text("{}")
    (tmp_path / "m" / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
    code, err = run("run", "model=local", "model.path=./m")
    assert code == 2 and "pickle weights only" in err


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/proc/sys"), reason="needs a place nobody can write to")
def test_read_only_store(run):
    code, err = run("run", "budget=smoke", "store=/proc/overpaint")
    assert code == 2 and "cannot write to the store /proc/overpaint" in err


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda m: m.sample("a dog", seeds=0), "sample() takes lists of prompts and seeds, got 'a dog' and 0"),
        (lambda m: m.sample(["a dog"], seeds=[0], size=m.pixels_per_latent + 1), "must be a multiple of"),
        (lambda m: overpaint.erase(m, "uce", erase=5), "erase takes a list of concept names, got [5]"),
        (
            lambda m: overpaint.erase(m, "uce", erase="dog", anchor=[5]),
            "anchor takes a text, or a list of one each, got [5]",
        ),
        (lambda m: overpaint.erase(m, "uce", erase=["dog"], lamb=float("nan")), "lamb takes a finite number, got nan"),
    ],
)
def test_python_calls_too(tiny_sd, call, said):
    with pytest.raises(UserError, match=re.escape(said)):
        call(tiny_sd)
