"""The common test suite of methods. It runs over every ``conf/method/*.yaml``, so a new method is tested automatically."""

import copy
import inspect
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from work import undeclared

import overpaint
from overpaint.attacks.merging import INNER, LINEAR
from overpaint.grid.choices import preset_for
from overpaint.grid.concepts import KINDS, Concept, Request
from overpaint.grid.lengths import shortened
from overpaint.grid.registry import component, components, construct
from overpaint.methods.eraser import RESERVED, Eraser
from overpaint.models.erasure import Erasure
from published import cross_attention, factors, write_kohya
from requirements import unmet
from small_methods import LOOKING, TINY

METHODS = sorted(components("method"))


@pytest.fixture(params=METHODS)
def method(request):
    return component("method", request.param)


#: A published erasure for each family, for methods that read a file.
PUBLISHED = {}


@pytest.fixture(scope="module", autouse=True)
def published(tiny_sd, tiny_sdxl, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    for model in (tiny_sd, tiny_sdxl):
        pairs = factors(model, cross_attention(model, "to_v"))
        PUBLISHED[model.family] = str(write_kohya(pairs, folder / f"{model.family}.safetensors"))


def required(method, family="sd"):
    """What a method has no default for: a published file, captions, and the detector of a method that looks at images."""
    file = {"file": PUBLISHED.get(family, "missing.safetensors")} if "file" in method.defaults else {}
    file |= {key: TINY[key] for key in ("mom2_captions", "prior_captions", "texts") if key in method.defaults}
    return file | (LOOKING if LOOKING.keys() <= method.defaults.keys() else {})


def erased(model, method, **arguments):
    budget = {key: value for key, value in TINY.items() if key in method.defaults} | required(method, model.family)
    arguments = {"erase": ["dog"], "anchor": "cat", "retain": ["ship"], "seed": 1} | budget | arguments
    return overpaint.erase(model, method.name, **arguments)


#: The erasure of a dog by each method on ``tiny_sd``, for tests that only read it.
ERASURES = {}


def erasure_of(model, method):
    if method.name not in ERASURES:
        ERASURES[method.name] = erased(model, method)
    return ERASURES[method.name]


def picture(model, prompt="a photo of a dog", seed=0):
    return np.asarray(model.sample([prompt], [seed], steps=3, guidance_scale=5)[0])


def snapshot(model):
    tensors = {name: p.data.clone() for name, p in model.named_parameters().items()}
    return tensors, model.guidance, model.tokenizer


def assert_unchanged(model, before):
    tensors, guidance, tokenizer = before
    assert model.guidance is guidance and model.tokenizer is tokenizer
    parameters = model.named_parameters()
    assert parameters.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(parameters[name].data, tensor), name
        assert not parameters[name].requires_grad and parameters[name].grad is None


def equal(one: Erasure, two: Erasure) -> bool:
    stored = one._stored(), two._stored()
    return (
        stored[0].keys() == stored[1].keys()
        and all(torch.equal(stored[0][name], stored[1][name]) for name in stored[0])
        and (one.kind, one.settings) == (two.kind, two.settings)
    )


def test_the_same_seed_gives_the_same_erasure_whatever_the_global_one(tiny_sd, method):
    torch.manual_seed(1)
    one = erasure_of(tiny_sd, method)
    torch.manual_seed(2)
    state, before = torch.get_rng_state(), snapshot(tiny_sd)
    two = erased(tiny_sd, method)
    assert_unchanged(tiny_sd, before)
    assert equal(one, two)
    assert torch.equal(torch.get_rng_state(), state), "a method draws from its own generator"


def test_attach_and_detach_are_exact(tiny_sd, method):
    before, plain = snapshot(tiny_sd), picture(tiny_sd)
    erasure = erasure_of(tiny_sd, method)
    with erasure.attached(tiny_sd):
        edited = picture(tiny_sd)
        parameters = tiny_sd.named_parameters()
        changed = {name for name, tensor in before[0].items() if not torch.equal(parameters[name].data, tensor)}
    assert changed <= set(erasure.changes), "changes a parameter that it does not declare"
    assert_unchanged(tiny_sd, before)
    assert np.array_equal(picture(tiny_sd), plain)
    assert np.array_equal(edited, plain) == (method.name == "none")


def test_it_says_whether_its_erasures_can_be_merged(tiny_sd, method):
    """Changes of weights can be, and adapters without tensors in which their output is not linear."""
    budget = {key: value for key, value in TINY.items() if key in method.defaults} | required(method)
    linear = (*LINEAR, *INNER)
    parts = erasure_of(tiny_sd, method).sequence
    can = all(e.kind == "delta" or (e.kind == "adapter" and all(n.endswith(linear) for n in e.parts)) for e in parts)
    assert method.build(budget).mergeable == can


def test_detaching_after_an_error(tiny_sd, method):
    before = snapshot(tiny_sd)
    with pytest.raises(RuntimeError), erasure_of(tiny_sd, method).attached(tiny_sd):
        raise RuntimeError
    assert_unchanged(tiny_sd, before)


def test_save_load_attach_gives_the_same_picture(tiny_sd, method, tmp_path):
    erasure = erasure_of(tiny_sd, method)
    erasure.save(tmp_path / "erasure.safetensors")
    saved = load_file(tmp_path / "erasure.safetensors")
    assert erasure.manifest["artefact_bytes"] == sum(tensor.nbytes for tensor in saved.values())
    loaded = overpaint.load_erasure(tmp_path / "erasure.safetensors")
    assert equal(erasure, loaded) and loaded.manifest == erasure.manifest
    with erasure.attached(tiny_sd):
        ours = picture(tiny_sd)
    with loaded.attached(tiny_sd):
        assert np.array_equal(picture(tiny_sd), ours)


@pytest.mark.parametrize("how", [{"sequential": True}, {"merge": "sum"}], ids=["in turn", "merged"])
def test_one_request_per_concept(tiny_sd, method, how, tmp_path):
    before = snapshot(tiny_sd)
    try:
        erasure = erased(tiny_sd, method, erase=["dog", "bird"], **how)
    except overpaint.UserError as error:
        assert f"{method.name} cannot be put on top of one" in str(error) and not method.load().stacks
        assert_unchanged(tiny_sd, before)
        return
    assert_unchanged(tiny_sd, before)
    asked = [[c["name"] for c in e.manifest["erase"]] for e in erasure.sequence]
    if "merge" in how:
        assert asked == ([["dog", "bird"]] if erasure.kind == "delta" else [["dog"], ["dog", "bird"]])
    else:
        assert asked == [["dog"], ["bird"]]
    with erasure.attached(tiny_sd):
        ours, parameters = picture(tiny_sd), tiny_sd.named_parameters()
        changed = {name for name, tensor in before[0].items() if not torch.equal(parameters[name].data, tensor)}
        assert changed <= set(erasure.names)
    assert_unchanged(tiny_sd, before)
    erasure.save(tmp_path / "erasure.safetensors")
    loaded = overpaint.load_erasure(tmp_path / "erasure.safetensors")
    assert equal(erasure, loaded) and loaded.manifest == erasure.manifest
    with loaded.attached(tiny_sd):
        assert np.array_equal(picture(tiny_sd), ours)


def test_a_guard_that_does_not_stack_is_refused_on_another(tiny_sd, monkeypatch):
    monkeypatch.setattr("overpaint.methods.sld.SLD.stacks", False)
    before = snapshot(tiny_sd)
    with pytest.raises(overpaint.UserError, match="sld cannot be put on top of one"):
        overpaint.erase(tiny_sd, "sld", erase=["dog", "bird"], sequential=True)
    assert_unchanged(tiny_sd, before)


def test_the_manifest_is_complete(tiny_sd, method):
    manifest = erased(tiny_sd, method, erase=["dog", "bird"], retain=["ship", "tree"]).manifest
    assert manifest["method"] == method.name and manifest["version"] == method.load().version
    assert manifest["hyperparameters"].keys() == {*method.defaults, "seed"}
    assert manifest["erase"] == [{"name": name, "kind": "object", "anchor": "cat"} for name in ("dog", "bird")]
    assert manifest["retain"] == ["ship", "tree"]
    assert manifest["peak_bytes"] > 0


@dataclass(kw_only=True)
class Narrow(Eraser):
    """A method that supports as little as allowed."""

    kinds = ("style",)
    multiple = False

    def erase(self, model, request):
        return Erasure("narrow")


def test_what_a_method_does_not_support_is_refused(tiny_sd):
    def check(*kinds):
        Narrow().check(
            tiny_sd.family, Request(tuple(Concept(f"c{i}", kind=kind) for i, kind in enumerate(kinds))), "narrow"
        )

    check("style")
    with pytest.raises(overpaint.UserError, match="method=narrow erases the kinds style, not object"):
        check("object")
    with pytest.raises(overpaint.UserError, match="one concept per request, got 2"):
        check("style", "style")
    with pytest.raises(TypeError, match="Narrow makes erasures of kind 'guard' but does not implement install"):
        Narrow.install(tiny_sd, Erasure("narrow", "guard"))


def test_an_unknown_hyper_parameter_is_refused_with_the_nearest(tiny_sd, method):
    for key in method.defaults:
        with pytest.raises(overpaint.UserError, match=f"did you mean '{key}'"):
            erased(tiny_sd, method, **{f"{key}x": 1})
    with pytest.raises(overpaint.UserError, match="unknown hyper-parameter 'qqq'"):
        erased(tiny_sd, method, qqq=1)


def test_a_wrong_type_is_refused_by_name(tiny_sd, method):
    for key in method.defaults:
        with pytest.raises(overpaint.UserError, match=f"(?s){method.name}.*{key}.*"):
            overpaint.erase(tiny_sd, method.name, erase=["dog"], **required(method) | {key: {"a": 1}})


def test_other_architectures_are_refused(tiny_sd, method):
    other = copy.copy(tiny_sd)
    other.family = "sculpture"
    with pytest.raises(overpaint.UserError, match="not sculpture"):
        erased(other, method)


def test_on_sdxl_it_works_or_says_that_it_does_not(tiny_sdxl, method):
    before = snapshot(tiny_sdxl)
    if "sdxl" not in method.load().families:
        with pytest.raises(overpaint.UserError, match="not sdxl"):
            erased(tiny_sdxl, method)
        return
    plain = picture(tiny_sdxl)
    with erased(tiny_sdxl, method).attached(tiny_sdxl):
        assert np.array_equal(picture(tiny_sdxl), plain) == (method.name == "none")
    assert_unchanged(tiny_sdxl, before)


def test_every_kind_that_it_declares_is_accepted(tiny_sd, method):
    eraser = method.build(required(method), seed=0)
    assert set(eraser.kinds) <= set(KINDS)
    for kind in eraser.kinds:
        eraser.check(tiny_sd.family, Request((Concept("dog", kind=kind),)), method.name)


def test_the_yaml_and_the_page_are_complete(method):
    missing = unmet("method", method.name, Eraser)
    assert not missing, f"conf/method/{method.name}.yaml:\n- " + "\n- ".join(missing)


#: Methods with hyper-parameters that are newer than stored results.
LATER = [name for name in METHODS if component("method", name).load().added]


def test_several_methods_have_later_hyper_parameters():
    assert len(LATER) >= 2


@pytest.mark.parametrize("name", LATER)
def test_what_keys_leave_out_is_the_default(name):
    """A later hyper-parameter is left out of keys at the value of the YAML, so that stored results stay valid."""
    method = component("method", name)
    for key, value in method.load().added.items():
        assert method.defaults[key] == value and type(method.defaults[key]) is type(value)


def test_a_hyper_parameter_cannot_have_the_name_of_an_argument_of_erase():
    arguments = inspect.signature(overpaint.erase).parameters
    assert {*RESERVED, "seed", "hyperparameters"} == {*arguments}
    with pytest.raises(overpaint.UserError, match=r"Mine\.kind: erase\(\) has an argument of this name"):
        type("Mine", (Eraser,), {"__annotations__": {"lamb": "float", "kind": "str", "networks": "ClassVar[tuple]"}})


def test_all_that_is_missing_is_said_at_once(tmp_path, monkeypatch):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "bare.yaml").write_text(
        "name: bear\ncomponent: overpaint.methods.rece:RECE\nlamda: 1 # weight\n"
    )
    monkeypatch.setattr("overpaint.grid.registry._asked", [tmp_path])
    missing = "\n".join(unmet("method", "bare", Eraser))
    for part in ("'summary'", "'presets'", "name: must be bare", "default of 'lamb'", "remove 'lamda'", "docs/methods"):
        assert part in missing


def test_every_preset_can_be_built(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coco2014.csv").write_text("prompt\na dog on the grass\n")  # what MACE's presets ask for by name
    assert issubclass(method.load(), Eraser)
    for preset in [None, *method.presets]:
        construct(method.load(), method.settle(required(method), preset), method.name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_preset_paper_has_the_values_of_each_kind_and_the_official_code(method, kind):
    """``paper`` becomes ``paper_style`` for a style; without it, the values of the preset ``style`` would be lost."""
    official = {"sld": {"compat": "original"}}.get(
        method.name, {"compat": "official"} if "compat" in method.defaults else {}
    )
    for number in (1, 5, 10):
        without_paper = next((name for name in (f"{kind}_{number}", kind) if name in method.config["presets"]), None)
        chosen = preset_for(method, "paper", "testbed", kind, [f"concept {i}" for i in range(number)])
        assert method.settle({}, chosen) == method.settle(official, without_paper)


def test_erase_takes_the_presets_of_a_sweep(tiny_sd):
    def train(**arguments):
        return overpaint.erase(tiny_sd, "esd", iterations=1, erase=["dog"], **arguments).manifest["hyperparameters"][
            "train"
        ]

    assert train(kind="unsafe") == train(kind="style") == "x"  # the default, without a preset
    assert train(kind="unsafe", preset="auto") == train(kind="unsafe", preset="unsafe") == "u"
    assert train(kind="unsafe", preset="paper") == "u"  # the variant paper_unsafe
    assert train(kind="style", preset="auto") == "x"


def test_whatever_it_repeats_is_a_length_that_a_budget_can_shorten(tiny_sd, method):
    small = {key: value for key, value in TINY.items() if key in method.defaults}
    built = method.build(small | required(method), seed=1)
    missing = undeclared(built, method.defaults, lambda **values: erased(tiny_sd, method, **values))
    assert not missing, f"{method.name}: declare lengths: {', '.join(missing)} (overpaint.grid.lengths)"


@pytest.mark.parametrize("limit", [2, 10])
def test_every_preset_can_be_shortened(method, limit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coco2014.csv").write_text("prompt\na dog on the grass\n")
    request = Request((Concept("dog"), Concept("cat"), Concept("bird")), (Concept("ship"),))
    for preset in [None, *method.presets]:
        values = method.settle(required(method), preset)
        built = method.build(values)
        cut = {key: new for key, (_, new) in shortened(built, limit, (), request).items()}
        short = method.build(values | cut)
        assert all(getattr(short, key) <= max(limit, built.least(request).get(key, 0)) for key in short.lengths)
        assert not shortened(short, limit, (), request)
