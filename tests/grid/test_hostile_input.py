"""Untrusted overrides, YAML files and CSV files. Each error is one sentence, before anything is written."""

import codecs
import os
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overpaint.commands.list import lines
from overpaint.errors import UserError
from overpaint.grid import registry
from overpaint.grid.cells import cell_from, merged
from overpaint.grid.composition import compose_cells
from overpaint.grid.concepts import load_catalogue
from overpaint.grid.prompt_files import read_prompts
from overpaint.grid.registry import component, load_attribute, look_in
from overpaint.grid.roles import ROLES, shortfalls


def ask(*overrides):
    """All checks of overrides that run before planning."""
    cells = [cell_from(c.config, c.explicit) for c in compose_cells(list(overrides))]
    kept, _ = merged(cells)
    for cell in kept:
        assert all(label.isprintable() for label in cell.labels.values())
        shortfalls(cell)
        for role in ROLES:
            role.shots(cell.concepts, cell.budget)
    return kept


def refused(call, *said):
    """The message of the error that ``call`` raises."""
    with pytest.raises(UserError) as error:
        call()
    text = str(error.value)
    assert text.isprintable() and len(text) < 1000, text
    for part in said:
        assert part in text
    return text


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    """No file is left in the working folder, and no folder in the search path of components."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    yield
    look_in()
    assert os.listdir(work) == []


# --- overrides ---------------------------------------------------------------------------------------------------

OVERRIDES = r"""
method
=
=3
~
+
-m
--help
~method
~seed
~budget.seeds
~metrics.metrics.nope
method=
method=,uce
method=[uce]
method={a: b}
method=null
method=1
method=true
method=../method/uce
method=/etc/passwd
method@x=uce
method@:x=uce
method=uce@x
method/uce=x
method.=1
.method=1
method..lamb=1
method=uce | method.lamb.x=1
method=uce | method.lamb=
method=uce | method.lamb=null
method=uce | method.lamb=[1]
method=uce | method.lamb={a:1}
method=uce | method.lamb=1e308
method=uce | method.lamb=1e400
method=uce | method.lamb=-inf
method=uce | method.lamb=nan
method=uce | method.lamb=true
method=uce | method.lamb="1"
method=uce | method.lamb='0.5'
method=uce | ~method.lamb
method=uce | method.name=esd
method=uce | method.component=os:system
method=uce | method.presets={}
method=uce | method.preset=[a]
method=uce | method.preset=5
method=uce | method.preset=''
method=uce | method.lаmb=1
method=uce | method.lamb=interval(0,1)
method=uce | method.lamb=range(0,1,0)
method=uce | method.lamb=range(0,1000000000)
method=uce | method.lamb=choice()
method=uce | method.lamb=shuffle(range(0,1000000000))
method=uce | method.lamb=glob(*)
method=glob(zz*)
method=uce | method.lamb=${oc.env:HOME}
method=uce | method.lamb=${oc.decode:1}
method=uce | method.lamb=${hydra:runtime.cwd}
method=uce | method.lamb=${nope}
method=uce | method.lamb=${method.lamb}
method=uce | method.lamb=${
method=uce | method.lamb=???
seed=range(0,1000000)
seed=range(0,1000000000000)
seed=shuffle(range(0,1000000))
seed=range(0,200) | budget.seeds=range(1,200)
seed=1.5
seed=a
seed=true
seed=null
seed=[]
seed=99999999999999999999999999999
seed=1e3
seed=${oc.env:HOME}
seed=🎨
concepts.erase=[café]
concepts.erase=[Van Gogh's]
concepts.erase=[]
concepts.erase=null
concepts.erase=5
concepts.erase=[[church]]
concepts.erase={a:b}
concepts.erase=['']
concepts.erase=[' ']
concepts.erase=[church,null]
concepts.erase=[1]
concepts.erase=all
concepts.erase=[church,church]
concepts.erase=[church] | concepts.retain=[church]
concepts.erase=['${oc.env:HOME}'] | concepts.catalogue=null
concepts.retain=none
concepts.retain=null
concepts.near=[church]
concepts.near=[' Church'] | concepts.erase=[church] | concepts.catalogue=null
concepts.near=[zzz]
concepts.anchor=church
concepts.anchor='a church'
concepts.anchor=CHURCH
concepts.anchor=[house,tree]
concepts.anchor=[]
concepts.kind=5
concepts.kind=null
concepts.kind=stile
concepts.name=5
concepts.sequential=yes
concepts.sequential=1
concepts.templates=['{']
concepts.templates=['{}{}']
concepts.templates=['{0}']
concepts.templates=['{} {x}']
concepts.templates=[null]
concepts.catalogue=nope
concepts.catalogue=../concepts/testbed
concepts.catalogue=/etc/passwd
concepts.catalogue=/dev/zero
concepts.catalogue=/dev/zero.yaml
concepts.catalogue=.yaml
concepts.prompts={zzz:p.csv}
concepts.prompts={target:p.csv}
concepts.prompts=[a]
concepts.prompts.target=~/p.csv
concepts.prompts.target=/tmp/a=b.csv
concepts.prompts.target=/dev/zero
concepts.prompts.target=/dev/stdin
concepts.prompts.target=/etc
concepts.prompts.target=missing.csv
+concepts.prompts.zzz=p.csv
+concepts.zzz=1
concepts=inline
concepts={erase:[church]}
attack=uda | attack.timesteps=[]
attack=uda | attack.timesteps=[[1]]
attack=uda | attack.iterations=0
attack=uda | attack.iterations=-1
attack=uda | attack.iterations=1e9
attack=uda | attack.control=uda
attack=uda | attack.control=5
attack=uda | attack.control=[a]
attack=uda | attack.floor=1
attack=uda | attack.floor=null
attack=replay | attack.file=5
attack=replay | attack.most=0
attack=concept_arithmetic | attack.recipes=5
attack=concept_arithmetic | attack.recipes={a:1}
attack=concept_arithmetic | attack.recipes={a:{name:x}}
protocol=nope
protocol=null
protocol.steps=0
protocol.steps=1001
protocol.steps=10.0
protocol.steps=ten
protocol.guidance_scale=1e308
protocol.guidance_scale=-1
protocol.guidance_scale=[7]
protocol.size=1e9
protocol.size=99999
protocol.size=1.5
protocol.batch_size=0
protocol.name=x
protocol={steps:5}
budget.target_prompts=1e9
budget.target_prompts=-1
budget.seeds=100000
budget.shard=0
budget.name=5
budget=smoke,zzz
metrics.threshold=null
metrics.threshold=a
metrics.threshold=1.01
metrics.metrics=null
metrics.metrics=[]
metrics.metrics.ua=null
metrics.metrics.ua=5
metrics=zzz
model=local
model=zzz
model.path=null
model.path=5
model.precision=half
model.preset=5
model.preset=zzz
model.detector=zzz
model.detector=5
model.judge=[a]
model.reference=5
model.catalogue=zzz
model.catalogue=5
model.protocol=dpm20
model.name=5
track=zzz
track=null
track.component=os:system
engine=zzz
engine.component=os:system
engine.summary=x
tracker.component=os:system
experiment=zzz
experiment=null
experiment=demo,smoke
experiment=[demo]
hydra.searchpath=[file:///nope]
hydra.searchpath=/nope
hydra.searchpath=5
hydra.searchpath=null
hydra.searchpath=[pkg://os]
hydra.searchpath={}
hydra.run.dir=/tmp/x
hydra/launcher=x
hydra=x
view=x
detector=oracle
foo=1
+foo=1
+foo.bar=1
foo.bar=1
uce.lamb=1
none.x=1
oracle.which=b
method=none,uce | method.lamb=1
method=none,uce | uce.nope=1
method=none,uce | uce.lamb.x=1
method=none,uce | ~uce.lamb
method=none,uce | uce=1
method=none,uce | uce.preset=zzz
method=none,uce | esd.iterations=5
method=uce | uce.name=esd
method=uce | uce.lamb=range(0,1000000)
method=uce,esd | method.nope=1
attack=uda,cce | attack.steps=5
church.anchor=x
testbed.steps=4
a=b=c
'a'=b
a b=c
method = uce
method=uce;attack=none
method=uce#x
method=$(ls)
method=`ls`
method="uce
method='uce
method=[uce
method={uce
method=uce)
method=(uce)
method=\
method=%
method=*
method=!
method=@
method=<x>
method=ü
""".strip().splitlines()
OVERRIDES += [
    "method=" + "[" * 3000,
    "a." * 3000 + "b=1",
    "seed=" + "9" * 5000,
    'concepts.erase=["a\0b"]',
    'concepts.erase=["a\x1b[31m"] | concepts.catalogue=null',
    'concepts.name="x\x1b"',
    "method=\0",
    "\n",
    "seed=1\n",
    " ",
    "",
    "method=uce | method.default_anchor=" + "${seed}" * 30,
    'concepts.prompts.target="' + "x" * 5000 + '"',
]


@pytest.mark.parametrize("line", OVERRIDES, ids=lambda line: repr(line[:60]))
def test_overrides(line):
    refused(lambda: ask(*line.split(" | ")))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("concepts.erase=[café]", """quote it: 'concepts.erase=["café"]'"""),
        ("concepts.erase=[Van Gogh's]", "quote it: 'concepts.erase=[\"Van Gogh'\"'\"'s\"]'"),
        ("concepts.prompts.target=~/p.csv", """quote it: 'concepts.prompts.target="~/p.csv"'"""),
        ("concepts.prompts.target=/tmp/a=b.csv", """quote it: 'concepts.prompts.target="/tmp/a=b.csv"'"""),
        ("seed=range(0,1000000)", "has more than 10000 values"),
        ("seed=range(0,200) | budget.seeds=range(1,200)", "this grid has 39800 cells; one run takes at most 10000"),
        ("method=uce | method.lamb=${oc.env:HOME}", "method.lamb: '${oc.env:HOME}' runs a resolver"),
        ("concepts.anchor='a church'", "anchor=a church is the concept to erase"),
        ("concepts.near=[church]", "concepts.near: church cannot be erased and be a neighbour that stays"),
        ("attack=uda,cce | attack.steps=5", "say whose it is"),
        ("metrics.metrics.ua=5", "metrics.metrics.ua takes str, got 5"),
    ],
)
def test_the_sentence_says_what_to_do(line, said):
    if "say whose" in said:  # the key is one of both attacks, or of one
        assert said in refused(lambda: ask("attack=uda,cce", "attack.iterations=5"))
        return
    refused(lambda: ask(*line.split(" | ")), said)


# --- YAML files --------------------------------------------------------------------------------------------------

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
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
}


@pytest.fixture(name="conf")
def folder(tmp_path):
    """Writes a file of a user's configuration folder; returns the override that names the folder."""

    def write(place, content):
        file = tmp_path / "conf" / f"{place}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return f"hydra.searchpath=[file://{tmp_path / 'conf'}]"

    return write


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("group", ["method", "concepts"])
def test_a_broken_file_of_an_option(conf, group, content):
    searchpath = conf(f"{group}/mine", content)
    assert "mine" in refused(lambda: ask(f"{group}=mine", searchpath))


@pytest.mark.parametrize("content", ["empty", "bomb", "resolver", "open list"])
@pytest.mark.parametrize("group", ["attack", "protocol", "budget", "metrics", "model", "engine"])
def test_a_broken_file_of_any_group_breaks_only_itself(conf, group, content):
    searchpath = conf(f"{group}/mine", BROKEN[content])
    assert "mine" in refused(lambda: ask(f"{group}=mine", searchpath))
    assert len(ask(searchpath)) == 1


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_catalogue(tmp_path, content):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    refused(lambda: ask(f"concepts.catalogue={file}"), "concept catalogue")


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
    "version is a text": "concepts: {church: {}}\nversion: one\n",
    "key is unknown": "concepts: {church: {}}\nconcept: {}\n",
}


@pytest.mark.parametrize("content", CATALOGUES.values(), ids=CATALOGUES.keys())
def test_a_catalogue_that_is_wrong(tmp_path, content):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    more = ["concepts.near=[church]"] if "house: {}}" in content else []
    refused(lambda: ask(f"concepts.catalogue={file}", *more))


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
def test_a_method_file_that_is_wrong(conf, content):
    searchpath = conf("method/mine", content)
    refused(lambda: ask("method=mine", searchpath))
    assert len(ask(searchpath, "method=uce")) == 1, "it breaks only itself"


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
    "leaves a value out": "defaults: [inline, _self_]\nerase: ???\n",
}


@pytest.mark.parametrize("content", SETS.values(), ids=SETS.keys())
def test_a_concept_set_that_is_wrong(conf, content):
    conf("concepts/evil", "# @package _global_\nmodel: {path: owner/name}\n")
    conf("concepts/bomb", BOMB)
    searchpath = conf("concepts/mine", content)
    refused(lambda: ask("concepts=mine", searchpath))


def test_no_environment_variable_gets_into_a_name(conf, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    searchpath = conf("concepts/mine", "defaults: [inline, _self_]\nname: church ${oc.env:HF_TOKEN}\nerase: [church]\n")
    assert "hf_secret" not in refused(lambda: ask("concepts=mine", searchpath), "runs a resolver")
    searchpath = conf("experiment/mine", "# @package _global_\nconcepts: {name: 'x ${oc.env:HF_TOKEN}'}\n")
    assert "hf_secret" not in refused(lambda: ask("experiment=mine", searchpath), "runs a resolver")
    searchpath = conf(
        "experiment/mine", "# @package _global_\nhydra: {sweeper: {params: {seed: '${oc.env:HF_TOKEN}'}}}\n"
    )
    assert "hf_secret" not in refused(lambda: ask("experiment=mine", searchpath))


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_experiment(conf, content):
    searchpath = conf("experiment/mine", content)
    refused(lambda: ask("experiment=mine", searchpath))


def test_a_name_in_two_folders_is_not_guessed(conf):
    searchpath = conf("method/uce", "component: overpaint.methods.none:Unedited\n")
    refused(lambda: ask("method=uce", searchpath), "method=uce is in", "rename one of them")
    assert len(ask("method=esd", searchpath)) == 1


# --- modules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference",
    ["", ":", "os", "os:", ":system", "os:system", "os.path:join", "builtins:eval", "sys:exit", "__main__:x", "..:x",
     ".x:y", "a b:c", "overpaint:nope", "overpaint.nope:x", "overpaint.grid:nope", "torch:save", "yaml:load",
     "subprocess:Popen", "overpaint.methods.uce:UCE.erase", "overpaint.methods.uce:UCE()", "a:b:c", "é:x", "x\0y:z"],
)  # fmt: skip
def test_only_modules_of_this_package_and_of_named_places_are_imported(reference):
    refused(lambda: load_attribute(reference))


def test_a_module_beside_a_named_folder_is_imported_and_breaks_only_itself(conf, tmp_path):
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
    ((cell),) = ask("method=mine", searchpath)
    assert (cell.method.name, cell.method.values) == ("mine", {"strength": 0.1})
    refused(lambda: ask("method=broken", searchpath), "'in_conf:Mine' cannot be imported: RuntimeError: not")
    refused(lambda: ask("method=lacking", searchpath), "No module named 'a_module_that_is_not_there'")
    compose_cells([searchpath])
    told = {line.split()[0]: line for line in lines("methods")}
    assert "halves" in told["mine"] and "empty  " in told["empty"] and "it takes a mapping" in told["empty"]
    assert "uce" in told


def test_a_package_whose_entry_point_is_broken_breaks_only_itself(monkeypatch):
    class Entry:
        name, value = "theirs", "a_module_that_is_not_there.conf"

    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry])
    registry._packages.cache_clear()
    try:
        assert len(ask("method=uce")) == 1
        text = refused(lambda: component("method", "theirs_own"), "unknown method 'theirs_own'")
        assert "entry point theirs = a_module_that_is_not_there.conf" in text and "No module named" in text
        assert any("cannot be used" in line for line in lines("methods"))
    finally:
        registry._packages.cache_clear()


# --- CSV files ---------------------------------------------------------------------------------------------------

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
}


@pytest.mark.parametrize("content", CSVS.values(), ids=CSVS.keys())
@pytest.mark.parametrize("role", ["target", "utility"])
def test_a_prompt_file_that_is_wrong(tmp_path, role, content):
    file = tmp_path / "p.csv"
    file.write_bytes(content)
    assert "p.csv" in refused(lambda: ask(f"concepts.prompts.{role}={file}"))


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
        refused(lambda path=path: read_prompts(path))


# --- anything ----------------------------------------------------------------------------------------------------

KEYS = ["method", "attack", "seed", "concepts", "concepts.erase", "concepts.anchor", "budget.seeds", "protocol.steps",
        "uce.lamb", "method.lamb", "metrics.metrics.ua", "model.precision", "hydra.searchpath", "~attack", "+x"]  # fmt: skip
WORDS = ["uce", "esd", "none", "church", "null", "true", "1", "-1", "1e9", "nan", "[", "]", "{", "}", ",", "'", '"', "${",
         "}", ":", "=", "range(0,3)", "choice(", ")", "café", " ", "???", "~", "\\", "*"]  # fmt: skip
FUZZ = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def harmless(call):
    """The call succeeds or raises a `UserError` of one line."""
    try:
        call()
    except UserError as error:
        assert str(error).isprintable()


@FUZZ
@given(
    st.lists(
        st.one_of(
            st.builds("{}={}".format, st.sampled_from(KEYS), st.lists(st.sampled_from(WORDS), max_size=5).map("".join)),
            st.text(max_size=20),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_overrides(overrides):
    harmless(lambda: ask(*overrides))


def yaml_values(keys):
    scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(string.printable, max_size=8))
    return st.recursive(
        scalars,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(keys), inner, max_size=4)),
        max_leaves=12,
    )


CATALOGUE_KEYS = ["concepts", "church", "kind", "synonyms", "translations", "en", "object", "templates", "utility",
                  "prompt", "expects", "unseen", "version", "neighbours", "anchor", "label"]  # fmt: skip


@FUZZ
@given(st.one_of(st.binary(max_size=200), yaml_values(CATALOGUE_KEYS)))
def test_any_catalogue(tmp_path, value):
    import yaml

    file = tmp_path / "any.yaml"
    file.write_bytes(value if isinstance(value, bytes) else yaml.safe_dump(value).encode())
    load_catalogue.cache_clear()
    harmless(lambda: ask(f"concepts.catalogue={file}"))


@FUZZ
@given(
    st.one_of(
        st.binary(max_size=200), yaml_values([*"ab", "erase", "retain", "anchor", "prompts", "target", "defaults"])
    )
)
def test_any_concept_set(conf, value):
    import yaml

    searchpath = conf("concepts/any", value if isinstance(value, bytes) else yaml.safe_dump(value))
    harmless(lambda: ask("concepts=any", searchpath))


@FUZZ
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text('prompt,seed\n"\r1.-e\0é', max_size=60).map(lambda t: ("prompt,seed\n" + t).encode()),
    )
)
def test_any_prompt_file(tmp_path, content):
    file = tmp_path / "any.csv"
    file.write_bytes(content)
    harmless(lambda: read_prompts(file))
