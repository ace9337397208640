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
#: Name -> content of a file that is no mapping of plain values, and part of the sentence.
BROKEN = {
    "empty": (b"", "is empty; it takes a mapping"),
    "comment": (b"# nothing\n", "is empty; it takes a mapping"),
    "list": (b"- 1\n", "holds a list; it takes a mapping"),
    "text": (b"hello\n", "holds a single value; it takes a mapping"),
    "number": (b"5\n", "holds a single value; it takes a mapping"),
    "null": (b"null\n", "is empty; it takes a mapping"),
    "open list": (b"a: [\n", "did not find expected node content"),
    "deep": (b"[" * 100_000, "exceeded maximum nesting depth"),
    "tab": (b"\t- x\n", "found character that cannot start any token"),
    "colons": (b"a: b: c\n", "mapping values are not allowed in this context (line 1)"),
    "two documents": (b"--- {a: 1}\n--- {b: 2}\n", "but found another document (line 2)"),
    "key twice": (b"name: x\nname: y\n", "the key 'name' stands twice (line 2)"),
    "number as key": (b"1: 2\n", "has the key 1, which is not a text"),
    "bool as key": (b"no: 1\n", "has the key false, which is not a text"),
    "list as key": (b"? [1]\n: 2\n", "found unhashable key"),
    "python": (b"a: !!python/object/apply:os.system [ls]\n", "python/object/apply:os.system is not allowed"),
    "unknown tag": (b"a: !mine x\n", "the tag !mine is not allowed"),
    "alias of nothing": (b"a: *x\n", "found undefined alias"),
    "alias of itself": (b"a: &a [*a]\n", "an alias that holds itself"),
    "bomb": (BOMB.encode(), "expands to more than 200000 values by its aliases"),
    "latin-1": ("name: caf\xe9\n".encode("latin-1"), "is not a text in UTF-8"),
    "UTF-16": ("name: x\n".encode("utf-16"), "is not a text in UTF-8"),
    "NUL": (b"name: a\0b\n", "unacceptable character #x0000"),
    "binary": (bytes(range(256)), "is not a text in UTF-8"),
    "long number": (b"a: " + b"9" * 5000, "value has 5000 digits"),
    "date": (b"a: !!timestamp 2001-14-14\n", "timestamp is not allowed"),
    "merge": (b"<<: 3\n", "expected a mapping or list of mappings for merging"),
    "large": (b"# x\n" * (3 << 20), "is larger than 8 MiB"),
    "resolver": (b"name: church ${oc.env:HOME}\n", ".name: 'church ${oc.env:HOME}' runs a resolver"),
    "resolver in a list": (b"a: [1, {b: '${oc.env:HOME}'}]\n", ".a.b: '${oc.env:HOME}' runs a resolver"),
    "resolver as key": (b"'${oc.env:HOME}': 1\n", "'${oc.env:HOME}' runs a resolver"),
    "nested interpolation": (b"a: '${oc.env:${oc.env:USER}}'\n", ".a: '${oc.env:${oc.env:USER}}' runs a resolver"),
    "tag of a file": (b"a: !include /etc/passwd\n", "the tag !include is not allowed"),
    "binary tag": (b"a: !!binary $$$\n", "binary is not allowed"),
    "set": (b"!!set {a, b}\n", "set is not allowed"),
    "anchor without a value": (b"a: &x\nb: [*x, *x]\n? *x\n: 1\n", "has the key null, which is not a text"),
    "merge of itself": (b"a: &a {<<: *a}\n", "an alias that holds itself"),
    "control characters": (b"a: b\x07\n", "unacceptable character #x0007"),
    "next line": ("a\u0085b: 1\n".encode(), "mapping values are not allowed in this context (line 2)"),
    "directive": (b"%YAML 9.9\n---\na: 1\n", "found incompatible YAML document"),
    "infinite": (b".inf: .nan\n", "has the key inf, which is not a text"),
}


@pytest.mark.parametrize(("content", "said"), BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("group", ["method", "concepts"])
def test_a_broken_file_of_an_option(refused, conf, group, content, said):
    searchpath = conf(f"{group}/mine", content)
    refused("plan", f"{group}=mine", searchpath, said=[f"{group}=mine", said])


@pytest.mark.parametrize("content", ["empty", "bomb", "resolver", "open list"])
@pytest.mark.parametrize("group", ["attack", "protocol", "budget", "metrics", "model", "engine"])
def test_a_broken_file_of_any_group_breaks_only_itself(refused, taken, conf, group, content):
    content, said = BROKEN[content]
    searchpath = conf(f"{group}/mine", content)
    refused("plan", f"{group}=mine", searchpath, said=[f"{group}=mine", said])
    assert len(taken(searchpath)) == 1


@pytest.mark.parametrize(("content", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_catalogue(refused, tmp_path, content, said):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    refused("plan", f"concepts.catalogue={file}", said=["concept catalogue", said])


#: Name -> content of a file, and part of the sentence.
CATALOGUES = {
    "no concepts": ("church: {}\n", "has no mapping 'concepts'"),
    "concepts is a list": ("concepts: [church]\n", "has no mapping 'concepts'"),
    "concept is a text": (
        "concepts: {church: x}\n",
        "concepts.church takes a mapping of names to values or null, got 'x'",
    ),
    "concept is a list": (
        "concepts: {church: [x]}\n",
        "concepts.church takes a mapping of names to values or null, got ['x']",
    ),
    "synonyms is a text": ("concepts: {church: {synonyms: chapel}}\n", "synonyms takes a list of texts, got 'chapel'"),
    "synonyms holds numbers": ("concepts: {church: {synonyms: [1]}}\n", "synonyms takes a list of texts, got [1]"),
    "paraphrases is a text": (
        "concepts: {church: {paraphrases: a big house}}\n",
        "paraphrases takes a list of texts, got 'a big house'",
    ),
    "neighbours is a text": (
        "concepts: {church: {neighbours: house}}\n",
        "neighbours takes a list of texts, got 'house'",
    ),
    "neighbour is unknown": ("concepts: {church: {neighbours: [house]}}\n", "unknown concept 'house' in concepts.near"),
    "neighbour is itself erased": (
        "concepts: {church: {}, house: {}}\n",
        "church cannot be erased and be a neighbour that stays",
    ),
    "translations is a list": (
        "concepts: {church: {translations: [de]}}\n",
        "translations takes a mapping of names to values, got ['de']",
    ),
    "translation is a number": (
        "concepts: {church: {translations: {de: 5}}}\n",
        "translations.de takes a text or a list of texts, got 5",
    ),
    "language is a bool": (
        "concepts: {church: {translations: {no: kirke}}}\n",
        "translations takes a mapping of names to values, got {False: 'kirke'}",
    ),
    "kind is unknown": ("concepts: {church: {kind: objekt}}\n", "kind; did you mean 'object'?"),
    "kind is null": (
        "concepts: {church: {kind: null}}\n",
        "kind takes object or style or person or character or unsafe or mark, got null",
    ),
    "label is a number": ("concepts: {church: {label: 5}}\n", "label takes a text or null, got 5"),
    "article is a list": ("concepts: {church: {article: [a]}}\n", "article takes a text, got ['a']"),
    "anchor is itself": ("concepts: {church: {anchor: church}}\n", "anchor=church is the concept to erase"),
    "anchor is a list": ("concepts: {church: {anchor: [house]}}\n", "anchor takes a text or null, got ['house']"),
    "field is unknown": ("concepts: {church: {synonym: [x]}}\n", "unknown key 'synonym'"),
    "name is given": ("concepts: {church: {name: x}}\n", "unknown key 'name'"),
    "name is empty": ("concepts: {church: {}, '': {}}\n", "a concept needs a name, got an empty string"),
    "name holds an escape": (
        'concepts: {church: {}, "a\\e[31m": {}}\n',
        "a concept's name takes at most 200 printable characters",
    ),
    "name is a number": (
        "concepts: {church: {}, 5: {}}\n",
        "concepts takes a mapping of names to values, got {'church': {}, 5: {}}",
    ),
    "unseen is a list": (
        "concepts: {church: {}}\nunseen: [rocket]\n",
        "unseen takes a mapping of names to values, got ['rocket']",
    ),
    "templates is a list": (
        "concepts: {church: {}}\ntemplates: ['a {}']\n",
        "templates takes a mapping of names to mappings, got ['a {}']",
    ),
    "templates of a kind is a list": (
        "concepts: {church: {}}\ntemplates: {object: ['a {}']}\n",
        "templates.object takes a mapping of names to lists, got ['a {}']",
    ),
    "templates of a language is a text": (
        "concepts: {church: {}}\ntemplates: {object: {en: 'a {}'}}\n",
        "templates.object.en takes a list of texts, got 'a {}'",
    ),
    "templates of an unknown kind": (
        "concepts: {church: {}}\ntemplates: {thing: {en: ['a {}']}}\n",
        "unknown key 'thing'",
    ),
    "template without braces": (
        "concepts: {church: {}}\ntemplates: {object: {en: [a church]}}\n",
        "templates: 'a church' has no {} to put the concept in",
    ),
    "template with other braces": (
        "concepts: {church: {}}\ntemplates: {object: {en: ['{} {x}']}}\n",
        "templates: '{} {x}' has braces besides one {}",
    ),
    "implicit is a text": ("concepts: {church: {}}\nimplicit: a car\n", "implicit takes a list of texts, got 'a car'"),
    "utility is a text": ("concepts: {church: {}}\nutility: a car\n", "utility takes a list of mappings, got 'a car'"),
    "utility holds texts": (
        "concepts: {church: {}}\nutility: [a car]\n",
        "utility takes a list of mappings, got ['a car']",
    ),
    "utility without prompt": (
        "concepts: {church: {}}\nutility: [{expects: [car]}]\n",
        "utility has an entry without a prompt",
    ),
    "utility expects a text": (
        "concepts: {church: {}}\nutility: [{prompt: a car, expects: car}]\n",
        "utility: expects takes a list of texts, got 'car'",
    ),
    "utility sentences are a text": (
        "concepts: {church: {}}\nutility_templates: a {}\n",
        "utility_templates takes a list of mappings, got 'a {}'",
    ),
    "utility sentences are texts": (
        "concepts: {church: {}}\nutility_templates: ['a {}']\n",
        "utility_templates takes a list of mappings, got ['a {}']",
    ),
    "utility sentence without a place": (
        "concepts: {church: {}}\nutility_templates: [{kinds: [object], prompt: a car}]\n",
        "'a car' takes one {} or {name} for the concept",
    ),
    "utility sentence with two": (
        "concepts: {church: {}}\nutility_templates: [{kinds: [object], prompt: '{} {name}'}]\n",
        "'{} {name}' takes one {} or {name} for the concept",
    ),
    "utility sentence with other braces": (
        "concepts: {church: {}}\nutility_templates: [{kinds: [object], prompt: '{} {x}'}]\n",
        "'{} {x}' takes one {} or {name} for the concept",
    ),
    "utility sentence without kinds": (
        "concepts: {church: {}}\nutility_templates: [{prompt: 'a {name}'}]\n",
        "'a {name}' has no kinds",
    ),
    "utility sentence of an unknown kind": (
        "concepts: {church: {}}\nutility_templates: [{kinds: [thing], prompt: 'a {name}'}]\n",
        "kinds takes a list of object or style or",
    ),
    "defaults are a list": (
        "concepts: {church: {}}\ndefaults: [object]\n",
        "defaults takes a mapping of names to values, got ['object']",
    ),
    "default is unknown": ("concepts: {church: {}}\ndefaults: {colour: red}\n", "unknown key 'colour'"),
    "names are a text": ("concepts: {church: {}}\nnames: chapel\n", "names takes a list of texts, got 'chapel'"),
    "names are numbers": ("concepts: {church: {}}\nnames: [5]\n", "names takes a list of texts, got [5]"),
    "grid is a text": (
        "concepts: {church: {}}\ngrid: a {object} in {style}\n",
        "grid takes a mapping of names to values, got 'a {object} in {style}'",
    ),
    "grid without a style": (
        "concepts: {church: {}}\ngrid: {prompt: 'a {object}'}\n",
        "one {object} and one {style}, got 'a {object}'",
    ),
    "grid with two objects": (
        "concepts: {church: {}}\ngrid: {prompt: '{object} {object} {style}'}\n",
        "one {object} and one {style}, got '{object} {object} {style}'",
    ),
    "grid seeds are a number": (
        "concepts: {church: {}}\ngrid: {seeds: 5}\n",
        "grid: seeds takes a list of whole numbers, got 5",
    ),
    "grid seed is negative": (
        "concepts: {church: {}}\ngrid: {seeds: [-1]}\n",
        "grid: seeds takes a list of whole numbers, got [-1]",
    ),
    "version is a text": ("concepts: {church: {}}\nversion: one\n", "version takes a whole number, got 'one'"),
    "key is unknown": ("concepts: {church: {}}\nconcept: {}\n", "unknown key 'concept'"),
}


@pytest.mark.parametrize(("content", "said"), CATALOGUES.values(), ids=CATALOGUES.keys())
def test_a_catalogue_that_is_wrong(refused, tmp_path, content, said):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    more = ["concepts.near=[church]"] if "house: {}}" in content else []
    refused("plan", f"concepts.catalogue={file}", *more, said=said)


#: Name -> content of a file, and part of the sentence.
METHODS = {
    "no component": ("summary: x\n", "method=mine has no component"),
    "component is null": ("component: null\n", "method=mine has no component"),
    "component is a list": ("component: [os]\n", "method=mine has no component"),
    "component of the standard library": ("component: os:system\n", "there is no module 'os' in overpaint"),
    "component of another package": ("component: yaml:YAMLObject\n", "there is no module 'yaml' in overpaint"),
    "component by path": ("component: ../x:Y\n", "'../x:Y' is not of the form module:attribute"),
    "component without attribute": (
        "component: overpaint.methods.uce\n",
        "'overpaint.methods.uce' is not of the form module:attribute",
    ),
    "component that is not there": ("component: overpaint.methods.uce:UCEE\n", "did you mean 'UCE'?"),
    "module that is not there": ("component: overpaint.methods.ucee:UCE\n", "No module named 'overpaint.methods.ucee'"),
    "component of another group": (
        "component: overpaint.attacks.none:NoAttack\n",
        "is not a subclass of overpaint.methods.eraser.Eraser",
    ),
    "values that are missing": ("component: overpaint.methods.uce:UCE\n", "method=mine: no value for variant"),
    "a value too many": (
        "component: overpaint.methods.none:Unedited\nnope: 1\n",
        "unknown hyper-parameter 'nope' in method=mine",
    ),
    "presets is a list": (
        "component: overpaint.methods.none:Unedited\npresets: [a]\n",
        "presets takes a mapping of names to mappings, got ['a']",
    ),
    "preset is a number": (
        "component: overpaint.methods.none:Unedited\npresets: {a: 1}\npreset: a\n",
        "presets takes a mapping of names to mappings, got {'a': 1}",
    ),
    "preset with an unknown key": (
        "component: overpaint.methods.none:Unedited\npresets: {a: {nope: 1}}\npreset: a\n",
        "unknown hyper-parameter 'nope' in method=mine",
    ),
    "preset that is not there": (
        "component: overpaint.methods.none:Unedited\npresets: {}\npreset: b\n",
        "unknown preset 'b' in method=mine",
    ),
    "defaults of another group": (
        "defaults: [/engine@_global_.engine: local, _self_]\ncomponent: x:Y\n",
        "Multiple values for engine",
    ),
    "defaults that are not there": (
        "defaults: [nope]\ncomponent: overpaint.methods.none:Unedited\n",
        "Could not load 'method/nope'",
    ),
    "defaults that run a resolver": (
        "defaults: ['${oc.env:HOME}']\ncomponent: overpaint.methods.none:Unedited\n",
        "method=mine.defaults: '${oc.env:HOME}' runs a resolver",
    ),
    "defaults of itself": (
        "defaults: [mine]\ncomponent: overpaint.methods.none:Unedited\n",
        "defaults leads back to mine",
    ),
    "defaults is a number": (
        "defaults: 5\ncomponent: overpaint.methods.none:Unedited\n",
        "defaults takes a list of options, got 5",
    ),
}


@pytest.mark.parametrize(("content", "said"), METHODS.values(), ids=METHODS.keys())
def test_a_method_file_that_is_wrong(refused, taken, conf, content, said):
    searchpath = conf("method/mine", content)
    refused("plan", "method=mine", searchpath, said=said)
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


#: Name -> content of a file, and part of the sentence.
SETS = {
    "sets another group": (
        "# @package _global_\ndefaults: [inline@concepts, _self_]\nconcepts: {erase: [church]}\n"
        "model: {precision: float64}\n",
        "mine.yaml sets model",
    ),
    "sets a group that is read later": (
        "# @package _global_\ndefaults: [inline@concepts, _self_]\nconcepts: {erase: [church]}\n"
        "engine: {device: cuda}\n",
        "mine.yaml sets engine",
    ),
    "sets a group that is read later, and nothing else": (
        "# @package _global_\nbudget: {seeds: 5}\n",
        "mine.yaml sets budget",
    ),
    "adds a group": ("# @package _global_\nfoo: {bar: 1}\n", "mine.yaml sets foo; it may set keys of concepts only"),
    "sets the seed": ("# @package _global_\nseed: 7\n", "mine.yaml sets seed"),
    "sets the store": ("# @package _global_\nstore: /tmp/elsewhere\n", "mine.yaml sets store"),
    "goes into the metrics": ("# @package metrics.metrics\nmine: os:system\n", "mine.yaml sets metrics"),
    "chooses another group": (
        "defaults: [inline, override /engine: local, _self_]\nerase: [church]\n",
        "Could not override 'engine@concepts.engine'",
    ),
    "puts another group elsewhere": (
        "defaults: [inline, /protocol@_global_.engine: dpm20, _self_]\nerase: [church]\n",
        "mine.yaml sets engine",
    ),
    "through its defaults": ("defaults: [inline, evil, _self_]\nerase: [church]\n", "mine.yaml sets model"),
    "through a bomb": ("defaults: [inline, bomb, _self_]\nerase: [church]\n", "bomb.yaml expands to more than"),
    "has an unknown key": (
        "defaults: [inline, _self_]\nerase: [church]\nnear_by: [house]\n",
        "unknown key 'near_by' in concepts; did you mean 'near'?",
    ),
    "has an unknown role": (
        "defaults: [inline, _self_]\nerase: [church]\nprompts: {targt: p.csv}\n",
        "unknown role 'targt' in concepts.prompts",
    ),
    "has no defaults": ("erase: [church]\n", "add `defaults: [inline, _self_]`"),
    "erases nothing": ("defaults: [inline, _self_]\n", "nothing to erase: give at least one concept in concepts.erase"),
    "erases a number": (
        "defaults: [inline, _self_]\nerase: [5]\n",
        "concepts.erase takes a text or a list of texts, got [5]",
    ),
    "erases what it keeps": (
        "defaults: [inline, _self_]\nerase: [church]\nretain: [church]\n",
        "church cannot be erased and retained in one request",
    ),
    "erases its neighbour": (
        "defaults: [inline, _self_]\nerase: [church]\nnear: [church]\n",
        "church cannot be erased and be a neighbour that stays",
    ),
    "has its concept as anchor": (
        "defaults: [inline, _self_]\nerase: [church]\nanchor: church\n",
        "anchor=church is the concept to erase",
    ),
    "names a missing file": (
        "defaults: [inline, _self_]\nerase: [church]\nprompts: {target: missing.csv}\n",
        "prompt file missing.csv does not exist",
    ),
    "refers to nothing": ("defaults: [inline, _self_]\nerase: ['${nope}']\n", "concepts.erase[0] refers to nope"),
    "refers in circles": (
        "defaults: [inline, _self_]\nerase: ['${concepts.anchor}']\nanchor: '${concepts.erase}'\n",
        "interpolation to parent node detected",
    ),
    "is named by itself": (
        "defaults: [inline, _self_]\nname: '${concepts.name}'\nerase: [church]\n",
        "concepts.name cannot be read: recursive interpolation",
    ),
    "refers without end": (
        "defaults: [inline, _self_]\nname: '" + "${a." * 200 + "'\nerase: [church]\n",
        "cannot be composed: no viable alternative at input",
    ),
    "leaves a value out": (
        "erase: ???\n",
        "concepts.erase has no value: give it on the command line, concepts.erase=…",
    ),
    "leaves out a value that its defaults give": ("defaults: [inline, _self_]\nerase: ???\n", "nothing to erase"),
}


@pytest.mark.parametrize(("content", "said"), SETS.values(), ids=SETS.keys())
def test_a_concept_set_that_is_wrong(refused, conf, content, said):
    conf("concepts/evil", "# @package _global_\nmodel: {path: owner/name}\n")
    conf("concepts/bomb", BOMB)
    searchpath = conf("concepts/mine", content)
    refused("plan", "concepts=mine", searchpath, said=said)


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
    assert "hf_secret" not in refused("plan", "experiment=mine", searchpath, said="runs a resolver")


@pytest.mark.parametrize(
    ("content", "said"),
    [*BROKEN.values(), (b"method: uce\n", "begin the file with the line # @package _global_")],
    ids=[*BROKEN, "no @package"],
)
def test_a_broken_experiment(refused, conf, content, said):
    searchpath = conf("experiment/mine", content)
    refused("plan", "experiment=mine", searchpath, said=["experiment=mine", said])


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
    "empty": (b"", "has no 'prompt' column (its columns: none)"),
    "blank lines": (b"\n\n\n", "has no 'prompt' column (its columns: none)"),
    "header alone": (b"prompt\n", "has a 'prompt' column but no prompt in it"),
    "no prompt": (b"prompt\n\n  \n", "has a 'prompt' column but no prompt in it"),
    "no prompt column": (b"sentence,seed\nhello,1\n", "has no 'prompt' column (its columns: sentence, seed)"),
    "prompt column twice": (b"prompt,prompt\na,b\n", "has the column 'prompt' more than once"),
    "seed column twice": (b"prompt,seed,Seed\na,1,2\n", "has the column 'seed' more than once"),
    "latin-1": ("prompt\n\xe9glise\n".encode("latin-1"), "line 2 is not in UTF-8; save it as UTF-8"),
    "UTF-16": (codecs.BOM_UTF16_LE + "prompt\nhello\n".encode("utf-16-le"), "line 1 is not in UTF-8"),
    "UTF-32": ("prompt\nhello\n".encode("utf-32"), "line 1 is not in UTF-8"),
    "NUL": (b"prompt\na\0b\n", "line 2 holds a NUL character"),
    "binary": (bytes(range(256)) * 10, "line 2 is not in UTF-8"),
    "huge field": (b"prompt\n" + b"x" * 200_000 + b"\n", "line 2 is not CSV: field larger than"),
    "open quote": (b'prompt\n"hello\n', "line 2 is not CSV: unexpected end of data"),
    "text after a quote": (b'prompt\n"hello" you\n', "line 2 is not CSV: ',' expected after"),
    "unquoted comma": (b"prompt,seed\na church, at night,1\n", "line 2 has 3 fields for 2 columns"),
    "seed is a text": (b"prompt,seed\nhello,x\n", "line 2: seed takes a number, got 'x'"),
    "seed is infinite": (b"prompt,seed\nhello,inf\n", "line 2: seed takes a whole number, got 'inf'"),
    "seed is a fraction": (b"prompt,seed\nhello,1.5\n", "line 2: seed takes a whole number, got '1.5'"),
    "seed is negative": (b"prompt,seed\nhello,-1\n", "line 2: seed takes a number from 0 to 2**63 - 1, got -1"),
    "seed is large": (
        b"prompt,seed\nhello,99999999999999999999\n",
        "seed takes a number from 0 to 2**63 - 1, got 99999999999999999999",
    ),
    "seed is very long": (b"prompt,seed\nhello," + b"9" * 5000 + b"\n", "line 2: seed takes a number, got '999"),
    "seed is an odd digit": ("prompt,seed\nhello,²\n".encode(), "line 2: seed takes a number, got '²'"),
    "guidance is not a number": (
        b"prompt,evaluation_guidance\nhello,nan\n",
        "line 2: guidance takes a finite number, got 'nan'",
    ),
    "guidance is 0": (
        b"prompt,evaluation_guidance\nhello,0\n",
        "line 2: guidance takes a number above 0 and up to 1000, got 0",
    ),
    "guidance is huge": (
        b"prompt,evaluation_guidance\nhello,1e308\n",
        "guidance takes a number above 0 and up to 1000, got 1e+308",
    ),
    "guidance is a text": (
        b"prompt,evaluation_guidance\nhello,seven\n",
        "line 2: guidance takes a number, got 'seven'",
    ),
    "carriage returns in a header": (b"prom\rpt\nhello\n", "has no 'prompt' column (its columns: prom)"),
    "escapes in a header": (b"\x1b[31mprom,pt\nhello,1\n", "(its columns: \\x1b[31mprom, pt)"),
    "NUL in a header": (b"prompt\0,seed\nhello,1\n", "line 1 holds a NUL character"),
    "header of 100,000 columns": (b"a," * 100_000 + b"\nx\n", "has no 'prompt' column (its columns: a, a, a"),
    "a row of 100,000 fields": (b"prompt\n" + b"x," * 100_000 + b"\n", "line 2 has 100001 fields for 1 columns"),
    "a file of 65 MiB": (b"prompt\n" + b"x\n" * (65 << 19), "is larger than 64 MiB"),
    "quotes alone": (b'"""""\n' * 10, "has no 'prompt' column"),
    "seed with an exponent": (b"prompt,seed\nhello,1e400\n", "line 2: seed takes a whole number, got '1e400'"),
    "seed with an underscore": (b"prompt,seed\nhello,1_0.5\n", "line 2: seed takes a whole number, got '1_0.5'"),
    "surrogates": (b"prompt\n\xed\xa0\x80\n", "line 2 is not in UTF-8"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS"),
    "width is 0": (b"prompt,width,height\na,0,512\n", "width takes a number of pixels from 8 to 8192, got 0"),
    "width is large": (
        b"prompt,width,height\na,99999,512\n",
        "width takes a number of pixels from 8 to 8192, got 99999",
    ),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "line 1 is not in UTF-8"),
}


#: Files that the other places of a prompt file refuse as well.
ELSEWHERE = ["empty", "latin-1", "unquoted comma", "seed is a fraction", "a file of 65 MiB"]


@pytest.mark.parametrize(
    ("key", "name"),
    [("concepts.prompts.target", name) for name in CSVS]
    + [(key, name) for key in ("concepts.prompts.utility", "attack=replay attack.file") for name in ELSEWHERE],
)
def test_a_prompt_file_that_is_wrong(refused, tmp_path, key, name):
    content, said = CSVS[name]
    file = tmp_path / "p.csv"
    file.write_bytes(content)
    refused("plan", *f"{key}={file}".split(), said=["p.csv", said])


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
