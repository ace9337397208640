"""Hostile YAML and CSV files: a row is a name and the content of a file. Each breaks only itself."""

import codecs

import pytest

from overpaint.commands.list import lines
from overpaint.errors import UserError
from overpaint.grid import registry
from overpaint.grid.composition import compose_cells
from overpaint.grid.prompt_files import read_prompts
from overpaint.grid.registry import component, load_attribute

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
#: Name -> content of a file that is no mapping of plain values.
BROKEN = {
    "empty": b"",
    "comment": b"# nothing\n",
    "list": b"- 1\n",
    "text": b"hello\n",
    "number": b"5\n",
    "null": b"null\n",
    "open list": b"a: [\n",
    "deep": b"[" * 100_000,
    "tab": b"\t- x\n",
    "colons": b"a: b: c\n",
    "two documents": b"--- {a: 1}\n--- {b: 2}\n",
    "key twice": b"name: x\nname: y\n",
    "number as key": b"1: 2\n",
    "bool as key": b"no: 1\n",
    "list as key": b"? [1]\n: 2\n",
    "python": b"a: !!python/object/apply:os.system [ls]\n",
    "unknown tag": b"a: !mine x\n",
    "alias of nothing": b"a: *x\n",
    "alias of itself": b"a: &a [*a]\n",
    "bomb": BOMB.encode(),
    "latin-1": "name: caf\xe9\n".encode("latin-1"),
    "UTF-16": "name: x\n".encode("utf-16"),
    "NUL": b"name: a\0b\n",
    "binary": bytes(range(256)),
    "long number": b"a: " + b"9" * 5000,
    "date": b"a: !!timestamp 2001-14-14\n",
    "merge": b"<<: 3\n",
    "large": b"# x\n" * (3 << 20),
    "resolver": b"name: church ${oc.env:HOME}\n",
    "resolver in a list": b"a: [1, {b: '${oc.env:HOME}'}]\n",
    "resolver as key": b"'${oc.env:HOME}': 1\n",
    "nested interpolation": b"a: '${oc.env:${oc.env:USER}}'\n",
    "tag of a file": b"a: !include /etc/passwd\n",
    "binary tag": b"a: !!binary $$$\n",
    "set": b"!!set {a, b}\n",
    "anchor without a value": b"a: &x\nb: [*x, *x]\n? *x\n: 1\n",
    "merge of itself": b"a: &a {<<: *a}\n",
    "control characters": b"a: b\x07\n",
    "next line": "a\u0085b: 1\n".encode(),
    "directive": b"%YAML 9.9\n---\na: 1\n",
    "infinite": b".inf: .nan\n",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("group", ["method", "concepts"])
def test_a_broken_file_of_an_option(refused, conf, group, content):
    searchpath = conf(f"{group}/mine", content)
    refused("plan", f"{group}=mine", searchpath, said="mine")


@pytest.mark.parametrize("content", ["empty", "bomb", "resolver", "open list"])
@pytest.mark.parametrize("group", ["attack", "protocol", "budget", "metrics", "model", "engine"])
def test_a_broken_file_of_any_group_breaks_only_itself(refused, taken, conf, group, content):
    searchpath = conf(f"{group}/mine", BROKEN[content])
    refused("plan", f"{group}=mine", searchpath, said="mine")
    assert len(taken(searchpath)) == 1


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_catalogue(refused, tmp_path, content):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    refused("plan", f"concepts.catalogue={file}", said="concept catalogue")


CATALOGUES = {
    "no concepts": "church: {}\n",
    "concepts is a list": "concepts: [church]\n",
    "concept is a text": "concepts: {church: x}\n",
    "concept is a list": "concepts: {church: [x]}\n",
    "synonyms is a text": "concepts: {church: {synonyms: chapel}}\n",
    "synonyms holds numbers": "concepts: {church: {synonyms: [1]}}\n",
    "paraphrases is a text": "concepts: {church: {paraphrases: a big house}}\n",
    "neighbours is a text": "concepts: {church: {neighbours: house}}\n",
    "neighbour is unknown": "concepts: {church: {neighbours: [house]}}\n",
    "neighbour is itself erased": "concepts: {church: {}, house: {}}\n",
    "translations is a list": "concepts: {church: {translations: [de]}}\n",
    "translation is a number": "concepts: {church: {translations: {de: 5}}}\n",
    "language is a bool": "concepts: {church: {translations: {no: kirke}}}\n",
    "kind is unknown": "concepts: {church: {kind: objekt}}\n",
    "kind is null": "concepts: {church: {kind: null}}\n",
    "label is a number": "concepts: {church: {label: 5}}\n",
    "article is a list": "concepts: {church: {article: [a]}}\n",
    "anchor is itself": "concepts: {church: {anchor: church}}\n",
    "anchor is a list": "concepts: {church: {anchor: [house]}}\n",
    "field is unknown": "concepts: {church: {synonym: [x]}}\n",
    "name is given": "concepts: {church: {name: x}}\n",
    "name is empty": "concepts: {church: {}, '': {}}\n",
    "name holds an escape": 'concepts: {church: {}, "a\\e[31m": {}}\n',
    "name is a number": "concepts: {church: {}, 5: {}}\n",
    "unseen is a list": "concepts: {church: {}}\nunseen: [rocket]\n",
    "templates is a list": "concepts: {church: {}}\ntemplates: ['a {}']\n",
    "templates of a kind is a list": "concepts: {church: {}}\ntemplates: {object: ['a {}']}\n",
    "templates of a language is a text": "concepts: {church: {}}\ntemplates: {object: {en: 'a {}'}}\n",
    "templates of an unknown kind": "concepts: {church: {}}\ntemplates: {thing: {en: ['a {}']}}\n",
    "template without braces": "concepts: {church: {}}\ntemplates: {object: {en: [a church]}}\n",
    "template with other braces": "concepts: {church: {}}\ntemplates: {object: {en: ['{} {x}']}}\n",
    "implicit is a text": "concepts: {church: {}}\nimplicit: a car\n",
    "utility is a text": "concepts: {church: {}}\nutility: a car\n",
    "utility holds texts": "concepts: {church: {}}\nutility: [a car]\n",
    "utility without prompt": "concepts: {church: {}}\nutility: [{expects: [car]}]\n",
    "utility expects a text": "concepts: {church: {}}\nutility: [{prompt: a car, expects: car}]\n",
    "utility sentences are a text": "concepts: {church: {}}\nutility_templates: a {}\n",
    "utility sentences are texts": "concepts: {church: {}}\nutility_templates: ['a {}']\n",
    "utility sentence without a place": "concepts: {church: {}}\nutility_templates: [{kinds: [object], prompt: a car}]\n",
    "utility sentence with two": "concepts: {church: {}}\nutility_templates: [{kinds: [object], prompt: '{} {name}'}]\n",
    "utility sentence with other braces": "concepts: {church: {}}\nutility_templates: [{kinds: [object], prompt: '{} {x}'}]\n",
    "utility sentence without kinds": "concepts: {church: {}}\nutility_templates: [{prompt: 'a {name}'}]\n",
    "utility sentence of an unknown kind": "concepts: {church: {}}\nutility_templates: [{kinds: [thing], prompt: 'a {name}'}]\n",
    "defaults are a list": "concepts: {church: {}}\ndefaults: [object]\n",
    "default is unknown": "concepts: {church: {}}\ndefaults: {colour: red}\n",
    "names are a text": "concepts: {church: {}}\nnames: chapel\n",
    "names are numbers": "concepts: {church: {}}\nnames: [5]\n",
    "grid is a text": "concepts: {church: {}}\ngrid: a {object} in {style}\n",
    "grid without a style": "concepts: {church: {}}\ngrid: {prompt: 'a {object}'}\n",
    "grid with two objects": "concepts: {church: {}}\ngrid: {prompt: '{object} {object} {style}'}\n",
    "grid seeds are a number": "concepts: {church: {}}\ngrid: {seeds: 5}\n",
    "grid seed is negative": "concepts: {church: {}}\ngrid: {seeds: [-1]}\n",
    "version is a text": "concepts: {church: {}}\nversion: one\n",
    "key is unknown": "concepts: {church: {}}\nconcept: {}\n",
}


@pytest.mark.parametrize("content", CATALOGUES.values(), ids=CATALOGUES.keys())
def test_a_catalogue_that_is_wrong(refused, tmp_path, content):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    more = ["concepts.near=[church]"] if "house: {}}" in content else []
    refused("plan", f"concepts.catalogue={file}", *more)


METHODS = {
    "no component": "summary: x\n",
    "component is null": "component: null\n",
    "component is a list": "component: [os]\n",
    "component of the standard library": "component: os:system\n",
    "component of another package": "component: yaml:YAMLObject\n",
    "component by path": "component: ../x:Y\n",
    "component without attribute": "component: overpaint.methods.uce\n",
    "component that is not there": "component: overpaint.methods.uce:UCEE\n",
    "module that is not there": "component: overpaint.methods.ucee:UCE\n",
    "component of another group": "component: overpaint.attacks.none:NoAttack\n",
    "values that are missing": "component: overpaint.methods.uce:UCE\n",
    "a value too many": "component: overpaint.methods.none:Unedited\nnope: 1\n",
    "presets is a list": "component: overpaint.methods.none:Unedited\npresets: [a]\n",
    "preset is a number": "component: overpaint.methods.none:Unedited\npresets: {a: 1}\npreset: a\n",
    "preset with an unknown key": "component: overpaint.methods.none:Unedited\npresets: {a: {nope: 1}}\npreset: a\n",
    "preset that is not there": "component: overpaint.methods.none:Unedited\npresets: {}\npreset: b\n",
    "defaults of another group": "defaults: [/engine@_global_.engine: local, _self_]\ncomponent: x:Y\n",
    "defaults that are not there": "defaults: [nope]\ncomponent: overpaint.methods.none:Unedited\n",
    "defaults that run a resolver": "defaults: ['${oc.env:HOME}']\ncomponent: overpaint.methods.none:Unedited\n",
    "defaults of itself": "defaults: [mine]\ncomponent: overpaint.methods.none:Unedited\n",
    "defaults is a number": "defaults: 5\ncomponent: overpaint.methods.none:Unedited\n",
}


@pytest.mark.parametrize("content", METHODS.values(), ids=METHODS.keys())
def test_a_method_file_that_is_wrong(refused, taken, conf, content):
    searchpath = conf("method/mine", content)
    refused("plan", "method=mine", searchpath)
    assert len(taken(searchpath, "method=uce")) == 1, "it breaks only itself"


VIEWS = {
    "colums: {}": "did you mean 'columns'",
    "cells: rank": "did you mean 'ranks'",
    "columns: {a: {metrik: x}}": "did you mean 'metric'",
    "columns: {a: {metric: x, field: valu}}": "did you mean 'value'",
    "columns: {a: {field: value}}": "needs a metric",
    "columns: {a: {metric: [x]}}": "metric takes a text, got ['x']",
    "columns: {a: x}": "columns.a takes a mapping",
    "columns: [a]": "columns takes a mapping",
    "blocks: [modle]": "blocks takes a list",
    "blocks: model": "blocks takes a list",
    "rows: metric": "unknown value 'metric'",
    "primary: {efficacy: ua}": "primary.efficacy takes a mapping",
    "primary: {efficacy: {attack: none}}": "primary.efficacy names no metric",
    "primary: {efficacy: {metric: ua, atack: cce}}": "'atack' in view mine: primary.efficacy; did you mean 'attack'",
    "extends: mine": "view mine: extends: view mine would extend itself",
    "extends: validty": "view mine: extends; did you mean 'validity'",
    "extends: hub\ncolumns: {FIDD: null}": "did you mean 'FID'",
    "extends: hub\ntogether: [detectors]": "together takes a list",
    "extends: validity\ncolumns: {to gold: null}": "'to gold' in view mine: truth",
    "extends: spqr\ncolumns: {S: null}": "harmonic",
    "- a": "it takes a mapping",
    "name: ${oc.env:HOME}": "runs a resolver",
    BOMB: "by its aliases",
}


@pytest.mark.parametrize("text", VIEWS, ids=lambda text: text[:40])
def test_a_broken_view_is_refused(refused, here, conf, text):
    (here / "s").mkdir()
    refused("table", "--view", "mine", "--format", "md", "store=s", conf("view/mine", text), said=VIEWS[text])


SETS = {
    "sets another group": "# @package _global_\nengine: {device: cuda}\n",
    "adds a group": "# @package _global_\nfoo: {bar: 1}\n",
    "sets the seed": "# @package _global_\nseed: 7\n",
    "sets the store": "# @package _global_\nstore: /tmp/elsewhere\n",
    "goes into the metrics": "# @package metrics.metrics\nmine: os:system\n",
    "chooses another group": "defaults: [inline, override /engine: local, _self_]\nerase: [church]\n",
    "puts another group elsewhere": "defaults: [inline, /protocol@_global_.engine: dpm20, _self_]\nerase: [church]\n",
    "through its defaults": "defaults: [inline, evil, _self_]\nerase: [church]\n",
    "through a bomb": "defaults: [inline, bomb, _self_]\nerase: [church]\n",
    "has an unknown key": "defaults: [inline, _self_]\nerase: [church]\nnear_by: [house]\n",
    "has an unknown role": "defaults: [inline, _self_]\nerase: [church]\nprompts: {targt: p.csv}\n",
    "has no defaults": "erase: [church]\n",
    "erases nothing": "defaults: [inline, _self_]\n",
    "erases a number": "defaults: [inline, _self_]\nerase: [5]\n",
    "erases what it keeps": "defaults: [inline, _self_]\nerase: [church]\nretain: [church]\n",
    "erases its neighbour": "defaults: [inline, _self_]\nerase: [church]\nnear: [church]\n",
    "has its concept as anchor": "defaults: [inline, _self_]\nerase: [church]\nanchor: church\n",
    "names a missing file": "defaults: [inline, _self_]\nerase: [church]\nprompts: {target: missing.csv}\n",
    "refers to nothing": "defaults: [inline, _self_]\nerase: ['${nope}']\n",
    "refers in circles": "defaults: [inline, _self_]\nerase: ['${concepts.anchor}']\nanchor: '${concepts.erase}'\n",
    "is named by itself": "defaults: [inline, _self_]\nname: '${concepts.name}'\nerase: [church]\n",
    "refers without end": "defaults: [inline, _self_]\nname: '" + "${a." * 200 + "'\nerase: [church]\n",
    "leaves a value out": "defaults: [inline, _self_]\nerase: ???\n",
}


@pytest.mark.parametrize("content", SETS.values(), ids=SETS.keys())
def test_a_concept_set_that_is_wrong(refused, conf, content):
    conf("concepts/evil", "# @package _global_\nmodel: {path: owner/name}\n")
    conf("concepts/bomb", BOMB)
    searchpath = conf("concepts/mine", content)
    refused("plan", "concepts=mine", searchpath)


def test_a_concept_set_without_defaults_is_told_how_to_get_them(refused, conf):
    searchpath = conf("concepts/mine", "name: mine\nerase: [church]\n")
    refused("plan", "concepts=mine", searchpath, said="concepts=mine: its YAML lacks keys that every concept set has")


def test_a_misspelt_class_is_named_with_its_module(refused, conf, tmp_path):
    (tmp_path / "conf").mkdir(exist_ok=True)
    (tmp_path / "conf" / "my_eraser.py").write_text("class Mine:\n    pass\n")
    searchpath = conf("method/mine", "name: mine\ncomponent: my_eraser:Mien\n")
    refused("plan", "method=mine", searchpath, said="component 'my_eraser:Mien': unknown attribute 'Mien' in my_eraser")


@pytest.mark.parametrize(
    ("group", "needed"),
    [
        ("method", "Eraser"),
        ("attack", "Attack"),
        ("detector", "Detector"),
        ("extractor", "Extractor"),
        ("track", "Track"),
    ],
)
def test_a_class_of_another_group_is_refused(refused, conf, group, needed):
    searchpath = conf(f"{group}/mine", "component: overpaint.images.pictures:Folder\nfolder: pictures\n")
    said = f"{group}=mine: overpaint.images.pictures:Folder is not a subclass of overpaint."
    asked = {"detector": "model.detector", "extractor": "metrics.extractors.text_image"}.get(group, group)
    refused("plan", f"{asked}=mine", "metrics=mace", searchpath, said=[said, f".{needed}"])


def test_no_environment_variable_gets_into_a_name(refused, conf, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    searchpath = conf("concepts/mine", "defaults: [inline, _self_]\nname: church ${oc.env:HF_TOKEN}\nerase: [church]\n")
    assert "hf_secret" not in refused("plan", "concepts=mine", searchpath, said="runs a resolver")
    searchpath = conf("experiment/mine", "# @package _global_\nconcepts: {name: 'x ${oc.env:HF_TOKEN}'}\n")
    assert "hf_secret" not in refused("plan", "experiment=mine", searchpath, said="runs a resolver")
    searchpath = conf(
        "experiment/mine", "# @package _global_\nhydra: {sweeper: {params: {seed: '${oc.env:HF_TOKEN}'}}}\n"
    )
    assert "hf_secret" not in refused("plan", "experiment=mine", searchpath)


@pytest.mark.parametrize("content", [*BROKEN.values(), b"method: uce\n"], ids=[*BROKEN, "no @package"])
def test_a_broken_experiment(refused, conf, content):
    searchpath = conf("experiment/mine", content)
    refused("plan", "experiment=mine", searchpath)


def test_a_name_in_two_folders_is_not_guessed(refused, taken, conf):
    searchpath = conf("method/uce", "component: overpaint.methods.none:Unedited\n")
    refused("plan", "method=uce", searchpath, said=["method=uce is in", "rename one of them"])
    assert len(taken("method=esd", searchpath)) == 1


@pytest.mark.parametrize("place", ["concepts/church", "budget/smoke", "protocol/ddim50", "experiment/smoke"])
def test_an_option_in_two_folders_is_not_guessed(refused, conf, place):
    searchpath = conf(place, "name: mine\n")
    option = place.replace("/", "=")
    refused("plan", option, searchpath, said=[f"{option} is in", "rename one of them"])


@pytest.mark.parametrize(
    "reference",
    ["", ":", "os", "os:", ":system", "os:system", "os.path:join", "builtins:eval", "sys:exit", "__main__:x", "..:x",
     ".x:y", "a b:c", "overpaint:nope", "overpaint.nope:x", "overpaint.grid:nope", "torch:save", "yaml:load",
     "subprocess:Popen", "overpaint.methods.uce:UCE.erase", "overpaint.methods.uce:UCE()", "a:b:c", "é:x", "x\0y:z"],
)  # fmt: skip
def test_only_modules_of_this_package_and_of_named_places_are_imported(reference):
    with pytest.raises(UserError):
        load_attribute(reference)


def test_a_module_beside_a_named_folder_is_imported_and_breaks_only_itself(refused, taken, conf, tmp_path):
    (tmp_path / "beside_conf.py").write_text(
        "from dataclasses import dataclass\nfrom overpaint.methods.none import Unedited\n"
        "@dataclass(kw_only=True)\nclass Mine(Unedited):\n    strength: float\n"
    )
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "in_conf.py").write_text("raise RuntimeError('not\\ntoday')\n")
    (tmp_path / "conf" / "needs_more.py").write_text("import a_module_that_is_not_there\n")
    conf("method/broken", "component: in_conf:Mine\nsummary: broken\n")
    conf("method/lacking", "component: needs_more:Mine\n")
    conf("method/empty", "")
    searchpath = conf("method/mine", "component: beside_conf:Mine\nsummary: halves\nstrength: 1e-1\n")
    ((cell),) = taken("method=mine", searchpath)
    assert (cell.method.name, cell.method.values) == ("mine", {"strength": 0.1})
    refused("plan", "method=broken", searchpath, said="'in_conf:Mine' cannot be imported: RuntimeError: not")
    refused("plan", "method=lacking", searchpath, said="No module named 'a_module_that_is_not_there'")
    compose_cells([searchpath])
    told = {line.split()[0]: line for line in lines("methods")}
    assert "halves" in told["mine"] and "empty  " in told["empty"] and "it takes a mapping" in told["empty"]
    assert "uce" in told


def test_a_package_whose_entry_point_is_broken_breaks_only_itself(taken, monkeypatch):
    class Entry:
        name, value = "theirs", "a_module_that_is_not_there.conf"

    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry])
    registry._packages.cache_clear()
    try:
        assert len(taken("method=uce")) == 1
        with pytest.raises(UserError, match="unknown method 'theirs_own'") as error:
            component("method", "theirs_own")
        text = str(error.value)
        assert "entry point theirs = a_module_that_is_not_there.conf" in text and "No module named" in text
        assert any("cannot be used" in line for line in lines("methods"))
    finally:
        registry._packages.cache_clear()


CSVS = {
    "empty": b"",
    "blank lines": b"\n\n\n",
    "header alone": b"prompt\n",
    "no prompt": b"prompt\n\n  \n",
    "no prompt column": b"sentence,seed\nhello,1\n",
    "prompt column twice": b"prompt,prompt\na,b\n",
    "seed column twice": b"prompt,seed,Seed\na,1,2\n",
    "latin-1": "prompt\n\xe9glise\n".encode("latin-1"),
    "UTF-16": codecs.BOM_UTF16_LE + "prompt\nhello\n".encode("utf-16-le"),
    "UTF-32": "prompt\nhello\n".encode("utf-32"),
    "NUL": b"prompt\na\0b\n",
    "binary": bytes(range(256)) * 10,
    "huge field": b"prompt\n" + b"x" * 200_000 + b"\n",
    "open quote": b'prompt\n"hello\n',
    "text after a quote": b'prompt\n"hello" you\n',
    "unquoted comma": b"prompt,seed\na church, at night,1\n",
    "seed is a text": b"prompt,seed\nhello,x\n",
    "seed is infinite": b"prompt,seed\nhello,inf\n",
    "seed is a fraction": b"prompt,seed\nhello,1.5\n",
    "seed is negative": b"prompt,seed\nhello,-1\n",
    "seed is large": b"prompt,seed\nhello,99999999999999999999\n",
    "seed is very long": b"prompt,seed\nhello," + b"9" * 5000 + b"\n",
    "seed is an odd digit": "prompt,seed\nhello,²\n".encode(),
    "guidance is not a number": b"prompt,evaluation_guidance\nhello,nan\n",
    "guidance is 0": b"prompt,evaluation_guidance\nhello,0\n",
    "guidance is huge": b"prompt,evaluation_guidance\nhello,1e308\n",
    "guidance is a text": b"prompt,evaluation_guidance\nhello,seven\n",
    "carriage returns in a header": b"prom\rpt\nhello\n",
    "escapes in a header": b"\x1b[31mprom,pt\nhello,1\n",
    "NUL in a header": b"prompt\0,seed\nhello,1\n",
    "header of 100,000 columns": b"a," * 100_000 + b"\nx\n",
    "a row of 100,000 fields": b"prompt\n" + b"x," * 100_000 + b"\n",
    "a file of 65 MiB": b"prompt\n" + b"x\n" * (65 << 19),
    "quotes alone": b'"""""\n' * 10,
    "seed with an exponent": b"prompt,seed\nhello,1e400\n",
    "seed with an underscore": b"prompt,seed\nhello,1_0.5\n",
    "surrogates": b"prompt\n\xed\xa0\x80\n",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "width is 0": b"prompt,width,height\na,0,512\n",
    "width is large": b"prompt,width,height\na,99999,512\n",
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
}


@pytest.mark.parametrize("content", CSVS.values(), ids=CSVS.keys())
@pytest.mark.parametrize("key", ["concepts.prompts.target", "concepts.prompts.utility", "attack=replay attack.file"])
def test_a_prompt_file_that_is_wrong(refused, tmp_path, key, content):
    file = tmp_path / "p.csv"
    file.write_bytes(content)
    refused("plan", *f"{key}={file}".split(), said="p.csv")


#: Content of a prompt file -> part of the sentence.
SENTENCES = {
    b"sentence,seed\nhello,1\n": "has no 'prompt' column (its columns: sentence, seed)",
    b"prompt\n\n": "has a 'prompt' column but no prompt in it",
    b"prompt\n\xe9glise\n": "line 2 is not in UTF-8; save it as UTF-8",
    b"prompt,seed\nhello,inf\n": "line 2: seed takes a whole number, got 'inf'",
    b"prompt,seed\nhello,1.5\n": "line 2: seed takes a whole number, got '1.5'",
    b"prompt,seed\nhello,-1\n": "line 2: seed takes a number from 0 to 2**63 - 1, got -1",
    b"prompt,evaluation_guidance\nhello,nan\n": "line 2: guidance takes a finite number, got 'nan'",
    b"prompt,evaluation_guidance\nhello,0\n": "line 2: guidance takes a number above 0 and up to 1000, got 0",
}


@pytest.mark.parametrize("content", SENTENCES)
def test_the_sentence_says_what_is_wrong(refused, tmp_path, content):
    file = tmp_path / "p.csv"
    file.write_bytes(content)
    refused("plan", f"concepts.prompts.target={file}", said=SENTENCES[content])


def test_a_prompt_file_as_spreadsheets_write_it(tmp_path):
    file = tmp_path / "p.csv"
    file.write_bytes(
        codecs.BOM_UTF8 + 'Prompt ,SEED\r\n"a church, at\r\nnight",7\r\n\r\n" église ",\r\nshort\r\n'.encode()
    )
    found = [(p.text, p.seed) for p in read_prompts(file)]
    assert found == [("a church, at\r\nnight", 7), ("église", None), ("short", None)]


def test_a_prompt_file_that_cannot_be_read(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    for path in (tmp_path / "folder.csv", tmp_path / "missing.csv", "/dev/zero", "~nobody/p.csv"):
        with pytest.raises(UserError):
            read_prompts(path)
