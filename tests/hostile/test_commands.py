"""Hostile commands and overrides: a row is a command line, and parts of the sentence that it must give."""

import os
import re
from pathlib import Path

import pytest

import overpaint
from overpaint.errors import UserError

CASES = [
    (("run", "method=essd"), ["'essd'", "did you mean 'esd'", "uce"]),
    (("run", "methd=uce"), ["'methd'", "did you mean 'method'"]),
    (("run", "protocol.stps=10"), ["'stps'", "protocol", "did you mean 'steps'"]),
    (("run", "budget.seeds=many"), ["budget.seeds takes a whole number from 1 to 1000, got 'many'"]),
    (("run", "budget.seeds=0"), ["budget.seeds takes a whole number from 1 to 1000, got 0"]),
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
    (("run", "concepts.erase=[van gogh]"), ["this model draws only these, others take any name, such as model=sd14"]),
    (
        ("run", "concepts.catalogue=imagenette", "concepts.erase=[me]"),
        ["unknown concept 'me'", "concepts.catalogue=null takes any name"],
    ),
    (("run", "concepts=inline"), ["nothing to erase"]),
    (("run", "concepts.templates=[no place]"), ["'no place' has no {}"]),
    (("run", "model=local"), ["model.path has no value"]),
    (("run", "model=local", "model.path=./nowhere"), ["model.path=./nowhere does not exist"]),
    (("run", "model=local", "model.path=model.ckpt"), ["pickle checkpoint", "safetensors"]),
    (("run", "method=[uce"), ["override"]),
    (("run", "concepts.prompts.target=missing.csv"), ["prompt file missing.csv does not exist"]),
    (("run", "concepts.prompts.targt=x.csv"), ["'targt'", "did you mean 'target'"]),
    (("list",), ["say what to list: assets, attacks, budgets"]),
    (("list", "metods"), ["'metods'", "did you mean 'methods'"]),
    (("table", "--format", "xls"), ["format 'xls'", "csv"]),
    (("table",), ["there is no store"]),
    (("erase", "method=uce"), ["out=FILE.safetensors"]),
    (("erase", "method=uce", "out=x.pt"), ["must end in .safetensors"]),
    (("export", "erasure=none.safetensors", "out=d"), ["none.safetensors does not exist"]),
    (("run", "attack=replay"), ["attack.file=FILE.csv"]),
    (("run", "attack=replay", "attack.file=missing.csv"), ["prompt file missing.csv does not exist"]),
    (("export", "attack=abc", "out=x.csv"), ["attack=abc", "neither an attack's name nor the key"]),
    (("export", "attack=randm_prefix", "out=x.csv"), ["neither an attack's name", "did you mean 'random_prefix'"]),
    (("export", "attack=cce", "out=x.txt"), ["must end in .csv"]),
    (("status",), ["there is no store"]),
    (("status", "--format", "csv", "store=s"), ["unknown format 'csv'", "json"]),
    (("status", "--watch", "--format", "json"), ["--watch draws on the terminal"]),
    (("status", "methd=uce"), ["'methd'", "did you mean 'method'"]),
    (("retry",), ["there is no store"]),
    (("retry", "methd=uce"), ["'methd'", "did you mean 'method'"]),
    (("gc",), ["gc takes the grids to keep"]),
    (("gc", "--delete"), ["gc takes the grids to keep"]),
    (("gc", "experiment=demo"), ["there is no store"]),
    (("store",), ["store takes a command: merge, pack, verify"]),
    (("store", "verfy"), ["unknown store command 'verfy'", "did you mean 'verify'"]),
    (("store", "verify"), ["there is no store"]),
    (("store", "merge", "missing"), ["missing does not exist"]),
    (("store", "merge", "~nobody-by-this-name/s"), ["there is no user ~nobody-by-this-name"]),
    (("store", "merge", "/proc", "method=uce"), ["merge takes one SOURCE and store=DIR, got method=uce"]),
    (("store", "pack"), ["pack takes out=FILE.tar"]),
    (("store", "pack", "out=x.zip"), ["must end in .tar"]),
    (("store", "pack", "out=no/x.tar"), ["out=no/x.tar: the folder no does not exist"]),
    (("store", "pack", "out=x.tar"), ["there is no store"]),
    # overrides that Hydra itself would accept or fail on
    (("run", "+foo=1"), ["unknown key 'foo' in the configuration", "allowed: attack"]),
    (("run", "method=uce", "+method.lam=1"), ["unknown hyper-parameter 'lam' in method=uce; did you mean 'lamb'"]),
    (("run", "~method"), ["method cannot be removed"]),
    (("run", "=3"), ["'=3': there is no key before the ="]),
    (("run", "method="), ["unknown method ''", "uce"]),
    (("run", "method=null"), ["unknown method 'null'"]),
    (("run", "method=my_own_eraser_"), ["unknown method 'my_own_eraser_'", "'hydra.searchpath=[file://DIR]'"]),
    (("run", "concepts=[church,cat]"), ["concepts takes one name; to sweep several, leave out the brackets"]),
    (("run", "experiment=demo,smoke"), ["run one after the other"]),
    (("plan", "store=a,b", "budget=smoke"), ["store says where and how the whole grid runs"]),
    (("run", "store=[a]", "budget=smoke"), ["store takes a text or null, got ['a']"]),
    (("rn",), ["unknown command 'rn'", "did you mean 'run'"]),
    (("table", "--formt", "md"), ["No such option", "--format", "table --help)"]),
    (("compare", "a"), ["Missing argument 'B'", "compare --help)"]),
    (("show", "store=s"), ["holds no images of the default cell", "such as experiment=smoke"]),
    (("scores", "method=uce"), ["holds no scores of this grid: run it first"]),
    (("plan", "method=checkpoint", "method.file=x.safetensors"), ["checkpoint.file=x.safetensors does not exist"]),
    (("plan", "method=sfd", "method.generator=x.pt"), ["method.generator=x.pt does not exist"]),
    (("doctor", "strore=x"), ["doctor takes store=DIR and hydra.searchpath=[…], got strore=x"]),
    (("erase", "concepts=church", "out=x.safetensors"), ["method=none erases nothing"]),
    (("erase", "method=uce", "out=no/x.safetensors"), ["out=no/x.safetensors: the folder no does not exist"]),
    (("export", "attack=uda", "out=no/x.csv"), ["out=no/x.csv: the folder no does not exist"]),
    (
        ("export", "attack=uda", "method=uce", "budget=smoke", "out=x.csv"),
        ["run them first (overpaint run attack=uda method=uce budget=smoke)"],
    ),
    (("export", "attack=synonym", "out=x.csv"), ["attack=synonym has nothing to export: its prompts are fixed"]),
    (("export", "erasure=/", "out=d"), ["erasure file / is not a regular file"]),
    (("run", "attack=multilingual", "attack.languages=[xx]"), ["unknown language 'xx' in attack=multilingual"]),
    (("run", "attack=multilingual", "attack.languages=[]"), ["languages takes at least one language code"]),
    (("plan", "method=uce", "method.floor=true"), ["unknown hyper-parameter 'floor' in method=uce"]),
    (("plan", "method=uce", "uce.control=seed_search"), ["unknown hyper-parameter 'control' in method=uce"]),
    (("table", "store="), ["store= is empty"]),
    # values out of their range
    (("run", "seed=-1"), ["seed takes a whole number from 0 to 9223372036854775807, got -1"]),
    (("run", "budget.grid=-1"), ["budget.grid takes a whole number from 0 up or null, got -1"]),
    (("run", "protocol.scheduler=ddmi"), ["unknown value 'ddmi' in protocol.scheduler; did you mean 'ddim'"]),
    (("run", "protocol.steps=2000"), ["protocol.steps takes a whole number from 1 to 1000, got 2000"]),
    (("run", "protocol.size=0"), ["protocol.size takes a whole number from 1 to 8192 or null, got 0"]),
    (("run", "protocol.guidance_scale=nan"), ["protocol.guidance_scale takes a number from 0 to 1000, got nan"]),
    (("run", "metrics.threshold=2"), ["metrics.threshold takes a number from 0 to 1 or null, got 2"]),
    (("run", "model.precision=float8"), ["unknown value 'float8' in model.precision; did you mean 'float64'"]),
    (("run", "model.judge=orcale"), ["unknown detector 'orcale' in model.judge; did you mean 'oracle'"]),
    (("run", "method=uce", "method.lamb=-1"), ["method=uce: lamb takes a number from 0 up, got -1.0"]),
    (("run", "method=uce", "method.lamb=inf"), ["method=uce: lamb takes a finite number, got inf"]),
    (
        ("run", "attack=uda", "attack.timesteps=[a]"),
        ["attack=uda: timesteps takes a whole number or a list of whole numbers, got ['a']"],
    ),
    (
        ("run", "engine.device=cdua", "budget=smoke"),
        ["unknown engine.device 'cdua'; did you mean 'cuda'? (allowed: auto, cpu, cuda, cuda:0)"],
    ),
    (
        ("run", "tracker=wandb", "tracker.mode=offlin", "budget=smoke"),
        ["unknown value 'offlin' in tracker=wandb: mode; did you mean 'offline'"],
    ),
    (("run", "+engine.workers=3"), ["'workers'", "engine=inline"]),
    # values of another type
    (("run", "attack=cce", "attack.floor=maybe"), ["attack=cce: floor takes true or false, got 'maybe'"]),
    (
        ("run", "attack=cce", "attack.control=seed"),
        ["unknown control 'seed' in attack=cce; did you mean 'seed_search'"],
    ),
    (
        ("run", "attack=cce", "attack.summary=mine"),
        ["attack.summary=mine: summary describes the attack and cannot be set"],
    ),
    (("run", "concepts.near=5"), ["concepts.near takes a text or a list of texts or null, got 5"]),
    (("run", "concepts.anchor=[5]"), ["concepts.anchor takes a text or a list of texts or null, got [5]"]),
    (("run", "concepts.kind=stile"), ["unknown value 'stile' in concepts.kind; did you mean 'style'"]),
    (("run", "concepts.catalogue=5"), ["concepts.catalogue takes a text or null, got 5"]),
    (("run", "concepts.templates=[5]"), ["concepts.templates takes a list of texts or null, got [5]"]),
    (("run", "concepts.templates=['{} {x}']"), ["'{} {x}' has braces besides one {}"]),
    (
        ("run", "concepts.prompts=x.csv"),
        ["concepts.prompts takes a mapping of names to values or null, got 'x.csv'"],
    ),
    (
        ("run", "concepts.prompts.target=5"),
        ["concepts.prompts.target takes a text or a mapping of names to values or null, got 5"],
    ),
    (("run", "concepts.prompts.target={first: 3}"), ["concepts.prompts.target needs a file"]),
    (("run", "concepts.prompts.target={file: x.csv, frist: 3}"), ["unknown key 'frist'", "did you mean 'first'"]),
    (("run", "concepts.prompts.target=asset:i2q/x.csv"), ["unknown asset 'i2q'", "did you mean 'i2p'"]),
    (("run", "concepts.prompts.target=asset:i2p/x.csv"), ["unknown file 'x.csv' in asset=i2p"]),
    (("run", "method=ca", "method.captions=asset:i2p/x.csv"), ["unknown file 'x.csv' in asset=i2p"]),
    (("run", "concepts.labels={chapel: x}"), ["unknown concept 'chapel' in concepts.labels"]),
    (("run", "concepts.labels=[x]"), ["concepts.labels takes a mapping of names to texts or null, got ['x']"]),
    (("show", "prompt=a", "prompt=b"), ["prompt= is given twice: give it once"]),
    (("status", "store=a", "store=b"), ["store= is given twice: give it once"]),
    (("plan", "engine=local", "engine.workers=0"), ["engine.workers takes auto or a number from 1 up, got 0"]),
    (("plan", "engine=local", "engine.workers=-2"), ["engine.workers takes auto or a number from 1 up, got -2"]),
    (("plan", "engine=local", "engine.workers=abc"), ["engine=local: workers takes a whole number or auto, got 'abc'"]),
    (("plan", "engine=local", "engine.workers=1.5"), ["engine=local: workers takes a whole number or auto, got 1.5"]),
    (("plan", "engine=local", "engine.workers=null"), ["workers takes a whole number or auto, got null"]),
    (("plan", "engine.device=banana"), ["unknown engine.device 'banana' (allowed: auto, cpu, cuda, cuda:0)"]),
    (("plan", "engine=slurm", "engine.time=soon"), ["engine.time"]),
    (("plan", "images_per_second=nan"), ["images_per_second takes a number above 0 and up to 1000000.0, got nan"]),
    (("plan", "images_per_second=0"), ["images_per_second takes a number above 0 and up to 1000000.0, got 0"]),
    (("run", "concepts.erase=[church,church]"), ["church cannot be erased twice in one request"]),
    (("run", "concepts.erase=[church]", "concepts.retain=[church]"), ["church cannot be erased and retained"]),
    (
        ("run", "concepts.catalogue=null", "concepts.erase=[Dog]", "concepts.retain=[' dog']"),
        ["dog cannot be erased and retained in one request"],
    ),
    (("run", "metrics.metrics.ua=3"), ["metrics.metrics.ua takes a text, got 3"]),
    (
        ("run", "metrics.metrics.ua=os:getcwd"),
        ["metrics.metrics.ua: 'os:getcwd'", "there is no module 'os' in overpaint"],
    ),
    (
        ("run", "metrics.metrics.ua=nowhere:X"),
        ["metrics.metrics.ua: 'nowhere:X'", "there is no module 'nowhere' in overpaint"],
    ),
    # commands
    (("list", "methods", "ucee"), ["unknown method 'ucee'; did you mean 'uce'?"]),
    (("list", "methods", "uce.lamb=1"), ["list takes names and hydra.searchpath", "uce.lamb=1"]),
    (("list", "a\x1b[31mb"), ["unknown list"]),
    (("list", "x" * 100_000), ["unknown list 'xxx"]),
    (("list", "methods", "hydra.searchpath=[file:///nope]"), ["/nope is not a folder"]),
    (("x" * 100_000,), ["unknown command"]),
    (("\udcff",), ["unknown command"]),
    (("",), ["unknown command ''"]),
    (("--foo",), ["No such option"]),
    (("run", "--f\x1b[31m"), ["No such option"]),
    (("run", "--cfg", "hydra"), ["'hydra' is not"]),
    (("table", "--format"), ["requires an argument"]),
    (("table", "--format", "a\x1b[31mb"), ["unknown format"]),
    (("table", "--view", "../../etc/passwd", "store=."), ["unknown view"]),
    (("table", "stroe=x"), ["did you mean 'store'"]),
    (("table", "store=~nobody-by-this-name/s"), ["there is no user ~nobody-by-this-name"]),
    (("table", "store=a\0b"), ["is not a path"]),
    (("table", "store=" + "x" * 5000), ["File name too long"]),
    (("doctor", "store=~nobody-by-this-name/s"), ["there is no user"]),
    (("doctor", "store=a\0b"), ["is not a path"]),
    (("doctor", "store=" + "x" * 5000), ["File name too long"]),
    (("doctor", "store=/dev/null"), ["/dev/null is not a folder"]),
    (("plan", "store=/dev/null/x", "budget=smoke"), ["/dev/null is not a folder"]),
    (("erase", "method=uce,esd", "out=x.safetensors"), ["erase needs one cell; these overrides span 2"]),
    (("erase", "method=uce", "out=a\0b.safetensors"), ["out=", "is not a path"]),
    (("erase", "method=uce", "out=a\nb.safetensors"), ["is not a path"]),
    (("erase", "method=uce", "out=" + "x" * 5000 + ".safetensors"), ["File name too long"]),
    (("erase", "method=uce", "out=~nobody-by-this-name/x.safetensors"), ["there is no user"]),
    (("erase", "method=uce", "out=/dev/null/x.safetensors"), ["does not exist"]),
    (("publish", "name=..", "method=uce"), ["name=NAME, a folder's name, got '..'"]),
    (
        ("score", "images=~nobody-by-this-name/p", "prompts=x.csv", "model=testbed"),
        ["images=~nobody", "there is no user"],
    ),
    (("score", "images=.", "prompts=a\0b", "model=testbed"), ["prompts=a\\x00b is not a path"]),
    (
        ("score", "images=.", "prompts=x.csv", "role=grid", "model=testbed"),
        ["role=grid is for names=PATTERN", "prompts="],
    ),
    (("ledger", "methd=esd"), ["unknown filter 'methd'", "did you mean 'method'"]),
    (("ledger", "method=ess"), ["unknown method 'ess'", "did you mean 'esd'", "--show names"]),
    (("ledger", "metric=post_asrr"), ["unknown metric 'post_asrr'", "did you mean 'post_asr'"]),
    (("ledger", "paper=macce"), ["unknown paper 'macce'", "did you mean"]),
    (("ledger", "method=" + "x" * 5000), ["unknown method 'xxx"]),
    (("ledger", "method=\x1b[31m"), ["unknown method"]),
    (("ledger", "esd"), ["takes filters such as method=esd, got esd"]),
    (("ledger", "method="), ["takes filters such as method=esd"]),
    (("ledger", "method=esd", "method=uce"), ["method= is given twice: give a list, method=esd,uce"]),
    (("ledger", "method=uce", "concept=church"), ["no published figure fits method=uce concept=church"]),
    (("ledger", "--show", "figure"), ["'figure'", "did you mean 'figures'"]),
    (("ledger", "--format", "latx"), ["unknown format 'latx'"]),
    (("ledger", "--top", "5"), ["--top", "--show disagreements"]),
    (("ledger", "--show", "disagreements", "store=s"), ["reads no records"]),
    (("ledger", "--show", "orders", "concept=church"), ["share three methods or more"]),
    (("ledger", "store=s"), ["there is no store at"]),
    (("ledger", "store=s", "--from", "f"), ["store= or --from, not both"]),
    (("ledger", "--from", "f"), ["--from", "f does not exist", "result files"]),
    (("ledger", "--from", "a\0b"), ["is not a path"]),
    (("export",), ["give erasure=FILE.safetensors and out=DIR"]),
    (("export", "out=x"), ["give erasure=FILE.safetensors and out=DIR"]),
    (("export", "erasure=", "out=d"), ["erasure= is empty"]),
    (("export", "erasure=a\0b", "out=d"), ["is not a path"]),
    (("export", "erasure=/dev/zero", "out=d"), ["/dev/zero is not a regular file"]),
    (("export", "attack=", "out=x.csv"), ["attack= is neither an attack's name nor the key"]),
    (("export", "attack=../x", "out=x.csv"), ["neither an attack's name nor the key"]),
    (("export", "attack=\x1b[31m", "out=x.csv"), ["neither an attack's name nor the key"]),
    # contradictions, and settings without effect
    (
        ("export", "attack=uda", "erasure=church.safetensors", "out=u.csv"),
        ["attack=uda: erasure=FILE writes a model, and attack=… prompts; give one of them"],
    ),
    (("export", "erasure=e.st", "+method.lamb=2", "out=d"), ["+method.lamb=2: erasure=FILE says what is erased"]),
    (("erase", "method=uce", "attack=cce", "out=x.safetensors"), ["attack=cce: erase makes and measures no image"]),
    (("erase", "method=uce", "protocol.steps=9", "out=x.safetensors"), ["protocol.steps=9: erase makes and"]),
    (
        ("run", "concepts=objects5", "concepts.merge=sum,ties", "concepts.sequential=true"),
        ["concepts.merge=sum,ties and concepts.sequential=true exclude each other: a merge joins"],
    ),
    (
        ("plan", "model.detector=null", "metrics.threshold=0.5"),
        ["metrics.threshold=0.5 has no effect with model.detector=null"],
    ),
    # options that are given twice or empty
    (("table", "--from", "A", "--from=B"), ["--from is given twice: give it once"]),
    (("table", "--view", "hub", "store=s", "--view", "facets"), ["--view is given twice"]),
    (("status", "--format", "json", "--format", "terminal"), ["--format is given twice"]),
    (("ledger", "--top", "1", "--top", "2"), ["--top is given twice"]),
    (("publish", "--check", "A", "--check", "B"), ["--check is given twice"]),
    (("run", "--cfg", "job", "--cfg", "job"), ["--cfg is given twice"]),
    (("gc", "--also", "method=uce", "--also", "method=esd"), ["there is no store"]),
    (("table", "--from="), ["--from is empty: give a value, or leave it out"]),
    (("publish", "--check", ""), ["--check is empty"]),
    (("show", "method=uce", "out="), ["out= is empty: give a value, or leave it out"]),
    (("show", "prompt="), ["prompt= is empty"]),
    (("scores", "out="), ["out= is empty"]),
    (("site", "out="), ["out= is empty"]),
    (("erase", "method=uce", "out="), ["out= is empty"]),
    (("store", "pack", "out="), ["out= is empty"]),
    (("publish", "out=", "name=mine"), ["out= is empty"]),
    (("publish", "name=", "method=uce"), ["name= is empty"]),
    (("compare", "a", "b", "ignore="), ["ignore= is empty"]),
    (("score", "images="), ["images= is empty"]),
    (("plan", "model=local", "model.path="), ["model.path= is empty: it takes a diffusers pipeline folder"]),
    # misspelt keys of a command
    (
        ("score", "images=.", "prompts=x.csv", "detector=oracle", "name=a", "image=b"),
        ["'image'", "did you mean 'images'"],
    ),
    (("score", "image=.", "prompts=x.csv", "detector=oracle"), ["'image'", "did you mean 'images'"]),
    (("show", "promt=x"), ["unknown key 'promt'", "did you mean 'prompt'", "out, prompt, protocol, role"]),
    (("erase", "method=uce", "output=x.safetensors"), ["unknown key 'output'", "did you mean 'out'"]),
    (("export", "attack=uda", "out=x.csv", "erasures=x"), ["unknown key 'erasures'", "did you mean 'erasure'"]),
    (("fetch", "assets=i2p"), ["unknown key 'assets'", "did you mean 'asset'"]),
    # names in another case
    (("run", "method=UCE"), ["unknown method 'UCE'; did you mean 'uce'"]),
    (("run", "concepts.erase=[CHURHC]"), ["did you mean 'church'"]),
    (("table", "--format", "CSV"), ["did you mean 'csv'"]),
]


@pytest.mark.parametrize(("arguments", "said"), CASES, ids=[repr(" ".join(a)[:60]) for a, _ in CASES])
def test_a_bad_command_is_refused_in_one_sentence(refused, arguments, said):
    refused(*arguments, said=said)


#: Overrides of one command, separated by ``|``.
OVERRIDES = r"""
method
=
~
+
~seed
~budget.seeds
~metrics.metrics.nope
method=,uce
method=[uce]
method={a: b}
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
method=uce | method.lamb=${oc.decode:1}
method=uce | method.lamb=${hydra:runtime.cwd}
method=uce | method.lamb=${nope}
method=uce | method.lamb=${method.lamb}
method=uce | method.lamb=${
method=uce | method.lamb=???
seed=range(0,1000000000000)
seed=shuffle(range(0,1000000))
seed=1.5
seed=a
seed=true
seed=null
seed=[]
seed=99999999999999999999999999999
seed=1e3
seed=${oc.env:HOME}
seed=🎨
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
concepts.catalogue=null | concepts.erase=['${oc.env:HOME}']
concepts.retain=none
concepts.retain=null
concepts.erase=[church] | concepts.catalogue=null | concepts.near=[' Church']
concepts.near=[zzz]
concepts.anchor=church
concepts.anchor=CHURCH
concepts.anchor=[house,tree]
concepts.anchor=[]
concepts.kind=5
concepts.kind=null
concepts.name=5
concepts.sequential=yes
concepts.sequential=1
concepts.merge=all
concepts.merge=5
concepts.merge=[sum]
concepts.merge={keep: 0.1}
concepts.merge={rule: null}
concepts.merge={rule: 5}
concepts.merge={rule: ties, keep: 2}
concepts.merge={rule: sum, scale: much}
concepts.merge={rule: closed, captions: /dev/zero}
concepts.merge={rule: closed, captions: nowhere}
concepts.templates=['{']
concepts.templates=['{}{}']
concepts.templates=['{0}']
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
concepts.prompts.target=/dev/zero
concepts.prompts.target=/dev/stdin
concepts.prompts.target=/etc
+concepts.prompts.zzz=p.csv
+concepts.zzz=1
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
metrics.threshold=a
metrics.threshold=1.01
metrics.metrics=null
metrics.metrics=[]
metrics.metrics.ua=null
metrics=zzz
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
experiment=[demo]
hydra.searchpath=[file:///nope]
hydra.searchpath=/nope
hydra.searchpath=5
hydra.searchpath=null
hydra.searchpath=true
hydra.searchpath=[null]
hydra.searchpath=[pkg://os]
hydra.searchpath={}
hydra.run.dir=/tmp/x
hydra/launcher=x
hydra=x
view=x
detector=oracle
foo=1
+foo.bar=1
foo.bar=1
uce.lamb=1
none.x=1
oracle.which=b
method=none,uce | method.lamb=1
method=none,uce | uce.nope=1
method=none,uce | method.name=esd
method=none | method.name=gold
attack=uda | attack.name=cce
method=none,uce | uce.lamb.x=1
method=none,uce | ~uce.lamb
method=none,uce | uce=1
method=none,uce | uce.preset=zzz
method=none,uce | esd.iterations=5
method=uce | uce.name=esd
method=uce | esd.name=x
foo.name=x
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
    'concepts.catalogue=null | concepts.erase=["a\x1b[31m"]',
    'concepts.name="x\x1b"',
    "method=\0",
    "method=\udcff",
    'concepts.catalogue=null | concepts.erase=["a\udcffb"]',
    "concepts.name=" + "x" * 100_000,
    "x" * 100_000 + "=1",
    "store='~nobody-by-this-name/s'",
    'store="' + "x" * 5000 + '"',
    'store="a\x1b[31mb"',
    "model=local | model.path=./" + "m" * 5000,
    "model=local | model.path='~nobody-by-this-name/m'",
    'model=local | model.path="./m\0"',
    "model=local | model.path='a b/c d'",
    "model=local | model.path='owner/..'",
    "model=local | model.path='owner/" + "n" * 300 + "'",
    "method=salun | method.folder='~nobody-by-this-name/f'",
    "method=ca | method.captions='~nobody-by-this-name/f.csv'",
    'hydra.searchpath=["a\0b"]',
    "hydra.searchpath=['" + "a" * 5000 + "']",
    "hydra.searchpath=['~nobody-by-this-name']",
    "\n",
    "seed=1\n",
    " ",
    "",
    "method=uce | method.default_anchor=" + "${seed}" * 30,
    'concepts.prompts.target="' + "x" * 5000 + '"',
]


#: Last overrides whose sentence names something else than the key: the file, the concept or the limit.
NAMED_OTHERWISE = {
    "concepts.prompts={target:p.csv}": "prompt file p.csv",
    "concepts.prompts.target=/dev/zero": "prompt file /dev/zero",
    "concepts.prompts.target=/dev/stdin": "prompt file /dev/stdin",
    "concepts.prompts.target=/etc": "prompt file /etc",
    'concepts.prompts.target="' + "x" * 5000 + '"': "prompt file=xxx",
    'concepts.erase=["a\x1b[31m"]': "a concept's name",
    'concepts.erase=["a\udcffb"]': "a concept's name",
    "method.default_anchor=" + "${seed}" * 30: "at most 20 references",
}


def part_of_the_key(line):
    """What the sentence must hold: the last part of the last override's key, or the first part, if that is unknown."""
    last = line.split(" | ")[-1]
    key = re.split("[=@]", last)[0].strip().lstrip("+~")
    first = f"unknown key '{key.split('.')[0][:200]}"
    return NAMED_OTHERWISE.get(last) or rf"({re.escape(key.split('.')[-1])}|{re.escape(first)})"


@pytest.mark.parametrize("line", OVERRIDES, ids=lambda line: repr(line[:60]))
def test_a_bad_override_is_refused_in_one_sentence_that_names_its_key(refused, line):
    said = refused("plan", *line.split(" | "))
    assert re.search(part_of_the_key(line), said) and "'None'" not in said and "/None" not in said


SENTENCES = [
    ("concepts.erase=[van", "the list is not closed; quote an override that has a space: 'concepts.erase=[a b,c]'"),
    ("concepts.erase=[café]", """quote it: 'concepts.erase=["café"]'"""),
    ("concepts.erase=[Van Gogh's]", "quote it: 'concepts.erase=[\"Van Gogh'\"'\"'s\"]'"),
    ("concepts.prompts.target=~/p.csv", """quote it: 'concepts.prompts.target="~/p.csv"'"""),
    ("concepts.prompts.target=/tmp/a=b.csv", """quote it: 'concepts.prompts.target="/tmp/a=b.csv"'"""),
    (
        "checkpoint.file=a-{concept}.pt,b-{concept}.pt",
        """quote it: 'checkpoint.file="a-{concept}.pt,b-{concept}.pt"', """
        """or for a sweep: 'checkpoint.file="a-{concept}.pt","b-{concept}.pt"'""",
    ),
    ("seed=range(0,1000000)", "has more than 200000 values"),
    ("seed=range(0,500) | budget.seeds=range(1,500)", "this grid has 249500 cells; one run takes at most 200000"),
    ("method=uce | method.lamb=${oc.env:HOME}", "method.lamb: '${oc.env:HOME}' runs a resolver"),
    ("concepts.anchor='a church'", "anchor=a church is the concept to erase"),
    ("concepts.near=[church]", "concepts.near: church cannot be erased and be a neighbour that stays"),
    ("attack=uda,cce | attack.iterations=5", "name the one you mean"),
    ("metrics.metrics.ua=5", "metrics.metrics.ua takes a text, got 5"),
    (
        "method=uce | method.name=esd",
        "method.name=esd: name describes the method and cannot be set; choose another, method=…",
    ),
    ("method=none | method.name=gold", "name describes the method and cannot be set"),
    ("method=none,uce | uce.name=esd", "uce.name=esd: name describes the method and cannot be set"),
    ("attack=uda | attack.name=cce", "attack.name=cce: name describes the attack and cannot be set"),
    ("concepts.merge={keep: 0.1}", "concepts.merge needs a rule (closed, mean, sum, ties), got {'keep': 0.1}"),
    ("hydra.searchpath=null", "hydra.searchpath takes a list of folders, got null"),
    ("method=uce,", "cannot read the override 'method=uce,': a value is missing after a comma"),
    ("method=uce,,esd", "a value is missing after a comma"),
    ("method=,uce", "a value is missing before a comma"),
    ("concepts.erase=[church,]", "a value is missing after a comma"),
    (
        "method=uce method.lamb=1",
        "'method=uce method.lamb=1': it holds 2 overrides; give each an argument of its own: method=uce method.lamb=1",
    ),
    (
        "concepts.erase=[van gogh] +seed=1 ~x=2",
        "it holds 3 overrides; give each an argument of its own: 'concepts.erase=[van",
    ),
]


@pytest.mark.parametrize(("line", "said"), SENTENCES, ids=[line for line, _ in SENTENCES])
def test_the_sentence_says_what_to_do(refused, line, said):
    refused("plan", *line.split(" | "), said=said)


#: What stands where a command reads or writes (a file, a folder, a pipe, or a link to nothing), the command, and a part of
#: the sentence.
PLACES = [
    ("file f", "table store=f", "f is not a folder"),
    ("file f", "run budget=smoke store=f", "f is not a folder"),
    ("file f", "plan budget=smoke store=f/s", "f is not a folder"),
    ("file f", "doctor store=f/s", "f is not a folder"),
    ("file f", "status store=f", "f is not a folder"),
    ("file f", "gc method=uce store=f", "f is not a folder"),
    ("pipe f", "store verify store=f", "f is not a folder"),
    ("link f", "retry store=f", "f is not a folder"),
    ("folder s", "gc experiment=dmo store=s", "unknown experiment 'dmo'"),
    ("folder s", "gc method=uce --also methd=uce store=s", "did you mean 'method'"),
    ("folder s", "gc method=uce --also method='uce store=s", "cannot be split into overrides"),
    ("folder s", "retry abc store=s", "no failed task has a key that begins with 'abc'"),
    ("folder s", "store verify mesure store=s", "unknown stage 'mesure'"),
    ("folder x.tar", "store pack out=x.tar store=.", "exists already"),
    ("pipe p", "store merge p", "is neither a folder nor a regular file"),
    ("pipe f", "export attack=abc out=x.csv store=f", "f is not a folder"),
    ("link f", "table store=f", "f is not a folder"),
    ("folder e.st", "export erasure=e.st out=d", "is not a regular file"),
    ("pipe e.st", "export erasure=e.st out=d", "is not a regular file"),
    ("link e.st", "export erasure=e.st out=d", "does not exist"),
    ("file f", "erase method=uce out=f/x.safetensors", "the folder f does not exist"),
    ("file x.safetensors", "erase method=uce out=x.safetensors", "exists already"),
    ("folder x.safetensors", "erase method=uce out=x.safetensors --overwrite", "exists already: remove it"),
    ("link x.safetensors", "erase method=uce out=x.safetensors", "exists already"),
    ("folder p.csv", "plan concepts.prompts.target=p.csv", "is not a regular file"),
    ("pipe p.csv", "plan concepts.prompts.target=p.csv", "is not a regular file"),
    ("pipe p.csv", "plan attack=replay attack.file=p.csv", "is not a regular file"),
    ("folder c.yaml", "plan concepts.catalogue=c.yaml", "unknown concept catalogue"),
    ("pipe c.yaml", "plan concepts.catalogue=c.yaml", "unknown concept catalogue"),
    ("file f", "plan hydra.searchpath=[f]", "is not a folder"),
    ("folder m", "plan model=local model.path=./m", "no model_index.json"),
    ("file m", "plan model=local model.path=./m", "is a file, not a folder (it takes a diffusers pipeline folder"),
    ("file m/n", "plan model=local model.path=m/n", "model.path=m/n is a file, not a folder"),
    ("link m", "plan model=local model.path=./m", "does not exist"),
    ("folder r", "plan model.reference=./r", "holds no image"),
    ("file r", "plan model.reference=./r", "is not a folder of images"),
    ("file r/x.png", "plan model.reference=./r", "x.png is not a readable image"),
    ("folder r/x.png", "plan model.reference=./r", "x.png is not a readable image"),
    ("pipe r/x.png", "plan model.reference=./r", "x.png is not a readable image"),
    ("link r/x.png", "plan model.reference=./r", "x.png is not a readable image"),
    ("file f", "plan method=salun method.folder=./f", "is not a folder"),
    ("folder f.csv", "plan method=ca method.captions=./f.csv", "unknown caption collection"),
    ("folder f", "plan method=salun method.folder=f", "folder=f is a word, not a path: write folder=./f for"),
    ("folder f", "plan method=mace method.folder=f", "folder=f is a word, not a path: write folder=./f for"),
    ("file f", "plan method=saeuron method.autoencoder=f", "write autoencoder=./f for the file"),
    ("folder f", "plan method=checkpoint method.file=f", "write checkpoint.file=./f for the folder"),
    (
        "folder f",
        "plan method=uce uce.variant=current uce.attributes=[cat,dog] uce.classifier=f",
        "write classifier=./f",
    ),
    ("folder f", "plan method=mace method.masks=segmenter method.detector=f", "write mace.detector=./f for the folder"),
    ("folder f", "plan method=sfd method.generator=f", "write method.generator=./f for the folder"),
    ("folder f", "plan attack=pez attack.clip=f", "write pez.clip=./f for the folder"),
    ("folder f", "plan attack=merge attack.checkpoint=f", "write merge.checkpoint=./f for the folder"),
]
MAKE = {"file": Path.touch, "folder": Path.mkdir, "pipe": os.mkfifo, "link": lambda path: path.symlink_to("gone")}


@pytest.mark.parametrize(("there", "line", "said"), PLACES, ids=[f"{there}: {line}" for there, line, _ in PLACES])
def test_what_stands_in_the_place_of_a_file_or_folder_is_named(refused, here, there, line, said):
    kind, name = there.split()
    (here / name).parent.mkdir(exist_ok=True)
    MAKE[kind](here / name)
    refused(*line.split(), said=said)


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/proc/sys"), reason="needs a place nobody can write to")
def test_a_store_that_cannot_be_written_is_refused(refused):
    refused("run", "budget=smoke", "store=/proc/overpaint", said="cannot write to the store /proc/overpaint")


@pytest.mark.skipif(not os.path.exists("/proc/sys"), reason="needs a place nobody can write to")
def test_an_output_that_cannot_be_written_is_refused_before_the_work(refused, monkeypatch):
    monkeypatch.setattr("overpaint.commands.erase.load_model", lambda *_: pytest.fail("the model is loaded"))
    refused("erase", "method=uce", "concepts=church", "out=/proc/b.safetensors", said=["/proc", "cannot be written"])


def test_settings_without_effect_can_be_parts_of_a_sweep(taken):
    assert taken("concepts=objects5", "method=uce", "concepts.merge=null,sum", "concepts.sequential=false,true")
    assert taken("model.detector=null,oracle", "metrics.threshold=0.5")


def test_good_input_is_taken(here, called, capfd):
    assert called("plan", "budget=smoke") == 0
    assert called("erase", "method=uce", "concepts=church", "out=x.safetensors") == 0
    assert [path.name for path in here.iterdir()] == ["x.safetensors"]
    assert called() == 0 and "Usage: " in capfd.readouterr().out


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda m: m.sample("a dog", seeds=0), "sample() takes lists of prompts and seeds, got 'a dog' and 0"),
        (lambda m: m.sample(["a dog"], seeds=[0], size=m.pixels_per_latent + 1), "must be a multiple of"),
        (lambda m: m.sample(["a dog"], seeds=[0], steps=0), "steps takes a number from 1 up, got 0"),
        (lambda m: m.sample(["a dog"], seeds=[0], batch_size=0), "batch_size takes a number from 1 up, got 0"),
        (lambda m: m.sample(["a dog"], seeds=[0], negative_prompt=None), "takes a text as negative_prompt, got None"),
        (lambda m: m.sample([1], seeds=[0]), "sample() takes texts as prompts, got 1"),
        (lambda m: m.sample(["a dog"], seeds=[1.5]), "takes whole numbers from 0 to 2**63 - 1 as seeds, got 1.5"),
        (lambda m: m.sample(["a dog"], seeds=[-1]), "takes whole numbers from 0 to 2**63 - 1 as seeds, got -1"),
        (lambda m: overpaint.erase(m, "uce", erase=["dog"], seed=-1), "seed takes a whole number from 0 to"),
        (lambda m: overpaint.load_model(""), "model.path= is empty"),
        (lambda m: overpaint.erase("testbed", "uce", erase=["dog"]), "takes a model of overpaint.load_model, got str"),
        (lambda m: overpaint.erase(m, "uce", erase=5), "erase takes a list of concept names, got [5]"),
        (
            lambda m: overpaint.erase(m, "uce", erase="dog", anchor=[5]),
            "anchor takes a text, or a list of one each, got [5]",
        ),
        (lambda m: overpaint.erase(m, "uce", erase=["dog"], lamb=float("nan")), "lamb takes a finite number, got nan"),
        (lambda m: overpaint.load_model("~nobody-by-this-name/m"), "there is no user ~nobody-by-this-name"),
        (lambda m: overpaint.load_erasure("~nobody-by-this-name/e"), "there is no user ~nobody-by-this-name"),
    ],
)
def test_python_calls_too(tiny_sd, call, said):
    with pytest.raises(UserError, match=re.escape(said)):
        call(tiny_sd)


def test_no_prompts_give_no_images_and_a_model_says_what_it_is(tiny_sd):
    assert tiny_sd.sample([], []) == []
    assert repr(tiny_sd).startswith("DiffusionModel(sd, float32, cpu, ")


def test_a_method_that_returns_bare_tensors_is_told_what_changes_takes(tiny_sd):
    layer = tiny_sd.projections("value")[0]
    erasure = overpaint.Erasure("mine", changes={layer.name: layer.weight.clone()})
    with pytest.raises(UserError, match=r"by a Tensor; changes takes a Replacement or a LowRank"):
        erasure.check_layout(tiny_sd)
