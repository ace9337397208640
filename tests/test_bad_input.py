"""Bad input: one clear sentence that says what, where, the choices and the nearest match; exit code 2; nothing written."""

import os
import sys

import pytest

from overpaint.cli import main


@pytest.fixture
def overpaint(tmp_path, monkeypatch, capsys):
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
    (("run", "budget.seeds=many"), ["budget: seeds takes int, got 'many'"]),
    (("run", "budget.seeds=0"), ["budget.seeds takes a positive number"]),
    (("run", "method=esd", "method.iteratons=5"), ["'iteratons'", "method", "did you mean 'iterations'"]),
    (("run", "method=uce", "method.lamb=much"), ["method=uce: lamb takes float, got 'much'"]),
    (("run", "method=uce", "method.variant=currnt"), ["'currnt'", "did you mean 'current'"]),
    (("run", "method=esd", "method.preset=tesbed"), ["preset 'tesbed'", "did you mean 'testbed'"]),
    (("run", "concepts.erase=[curch]"), ["concept 'curch'", "did you mean 'church'"]),
    (("run", "concepts=inline"), ["nothing to erase"]),
    (("run", "concepts.templates=[no place]"), ["'no place' has no {}"]),
    (("run", "model=local"), ["model.path has no value"]),
    (("run", "model=local", "model.path=./nowhere"), ["model folder ./nowhere does not exist"]),
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
    (("rn",), ["No such command 'rn'"]),
]


@pytest.mark.parametrize(("arguments", "said"), CASES, ids=[" ".join(a) for a, _ in CASES])
def test_one_sentence_and_exit_code_2(overpaint, tmp_path, arguments, said):
    code, err = overpaint(*arguments)
    assert code == 2, err
    for part in said:
        assert part in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_csv_without_prompt_column(overpaint, tmp_path):
    (tmp_path / "p.csv").write_text("sentence,seed\nhello,1\n")
    code, err = overpaint("run", "concepts.prompts.target=p.csv")
    assert code == 2
    assert "has no 'prompt' column (its columns: sentence, seed)" in err


def test_csv_without_a_prompt(overpaint, tmp_path):
    (tmp_path / "p.csv").write_text("prompt\n\n")
    code, err = overpaint("run", "concepts.prompts.target=p.csv")
    assert code == 2 and "no prompt in it" in err


def test_folder_that_is_no_pipeline(overpaint, tmp_path):
    (tmp_path / "m").mkdir()
    code, err = overpaint("run", "model=local", "model.path=./m")
    assert code == 2 and "no model_index.json" in err


def test_pickle_weights_in_a_folder(overpaint, tmp_path):
    (tmp_path / "m" / "unet").mkdir(parents=True)
    (tmp_path / "m" / "model_index.json").write_text("{}")
    (tmp_path / "m" / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
    code, err = overpaint("run", "model=local", "model.path=./m")
    assert code == 2 and "pickle weights only" in err


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/proc/sys"), reason="needs a place nobody can write to")
def test_read_only_store(overpaint):
    code, err = overpaint("run", "budget=smoke", "store=/proc/overpaint")
    assert code == 2 and "cannot write to the store /proc/overpaint" in err
