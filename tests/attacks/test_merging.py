"""Merging: what the merged weights are, where the benign change comes from, and what cannot be merged."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from plans import plan
from safetensors.torch import save_file
from work import work

import overpaint
from overpaint.attacks.merging import Merging
from overpaint.grid.registry import component
from overpaint.models.erasure import Erasure, LowRank, Replacement
from published import cross_attention, factors, write_kohya


def merge(**values):
    values = {"pictures": 2, "batch_size": 2, "steps": 2, "erasure": 1.0, "benign": 1.0} | values
    return component("attack", "merge").build(values, seed=0)


def of_file(path, **values):
    return merge(checkpoint=str(path), **values)


def plain(context):
    images = context.paint([s.prompt.text for s in context.shots], [s.noise_seed for s in context.shots])
    return [image.tobytes() for image in images]


def painted(attack, context):
    return [p.image.tobytes() for p in attack.run(replace(context, shots=context.shots[:2])).painted]


def moved(model, names, seed):
    """New tensors, a tenth of their spread away from the model's own."""
    generator, own = torch.Generator().manual_seed(seed), model.named_parameters()
    return {n: own[n].data + 0.1 * own[n].data.std() * torch.randn(own[n].shape, generator=generator) for n in names}


@pytest.fixture
def victim(tiny_sd):
    """An erasure of keys and values of cross-attention, one of them of low rank, and of a word."""
    word = "text_model.embeddings.token_embedding.weight"
    names = cross_attention(tiny_sd, "to_k", "to_v")
    changes = {n: Replacement(t) for n, t in moved(tiny_sd, [*names[1:], word], 1).items()}
    ((name, (up, down)),) = factors(tiny_sd, names[:1]).items()
    return Erasure("none", changes=changes | {name: LowRank(up, down)})


@pytest.fixture
def benign(tiny_sd, tmp_path):
    """A change of values and of a convolution, and the file that holds it."""
    tensors = moved(tiny_sd, [*cross_attention(tiny_sd, "to_v"), "conv_in.weight"], 2)
    path = tmp_path / "benign.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return tensors, path


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.5, 0.5), (0.5, 0.0), (0.0, 1.0), (0.3, 1.7)])
def test_images_are_those_of_a_model_with_the_merged_weights(a, b, victim, benign, erased, context, tiny_sd):
    tensors, path = benign
    own = {name: p.data.double() for name, p in tiny_sd.named_parameters().items()}
    with victim.attached(tiny_sd):
        edited = {name: p.data.double() for name, p in tiny_sd.named_parameters().items()}
    changes = {}
    for name in {*victim.changes, *tensors}:
        W = own[name] + a * (edited[name] - own[name])
        W += b * (tensors[name].double() - own[name]) if name in tensors else 0.0
        changes[name] = Replacement(W.float())
    few = replace(context, shots=context.shots[:2])
    with Erasure("none", changes=changes).attached(tiny_sd):
        wanted = plain(few)
    unedited = plain(few)
    with erased(victim) as there:
        found = painted(of_file(path, erasure=a, benign=b), there)
    assert found == wanted != unedited
    assert all(torch.equal(p.data, own[name].float()) for name, p in tiny_sd.named_parameters().items())


@pytest.mark.parametrize("train", ["xattn_kv", "attention_lora", "full"])
def test_a_benign_change_of_nothing_is_the_victim(train, victim, erased, context, tiny_sd):
    with erased(victim) as there:
        wanted = plain(replace(there, shots=there.shots[:2]))
        assert painted(merge(train=train, learning_rate=0.0), there) == wanted
        assert painted(merge(train=train, learning_rate=0.1), there) != wanted


def watched_changes(monkeypatch):
    seen, trained = [], Merging.trained
    monkeypatch.setattr(Merging, "trained", lambda *given: seen.append(trained(*given)) or seen[-1])
    return seen


@pytest.mark.parametrize("train", ["xattn_kv", "attention_lora"])
def test_the_benign_change_is_one_of_the_unedited_model(train, victim, erased, context, tiny_sd, monkeypatch):
    """It does not depend on the victim, and it changes what it trains."""
    seen, own = watched_changes(monkeypatch), dict(tiny_sd.named_parameters())
    attack = merge(train=train)
    painted(attack, context)
    with erased(victim) as there:
        painted(attack, there)
    one, other = ({n: c.apply(own[n].data) for n, c in changes.items()} for changes in seen)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert all(not torch.equal(one[name], own[name].data) for name in cross_attention(tiny_sd, "to_k"))
    assert all("attn2" in name for name in one) == (train == "xattn_kv")


def test_without_a_benign_part_nothing_is_trained_or_drawn(context):
    half = component("attack", "merge").build({}, "half")
    assert (half.erasure, half.benign, half.draws, half.lengths) == (0.5, 0.0, False, ())
    assert work(lambda: painted(half, context)) == 0
    assert merge().draws and merge().lengths == ("steps", "pictures")
    assert work(lambda: painted(merge(), context)) > 0


ADAPTERS = {
    "spm": {"iterations": 2, "rollout_steps": 4, "warmup_steps": 0, "learning_rate": 1e-1},
    "ace": {"iterations": 2, "rollout_steps": 4, "prior_weight": 0.0, "steer": "anchor", "learning_rate": 1e-1},
    "sliders": {"iterations": 2, "rollout_steps": 4, "learning_rate": 1e-1},
    "receler": {"iterations": 2, "rollout_steps": 4, "learning_rate": 1e-1},
}


@pytest.mark.parametrize("method", ADAPTERS)
def test_the_output_of_an_adapter_is_scaled(method, erased, context, tiny_sd):
    erasure = overpaint.erase(tiny_sd, method, erase=["cat"], anchor="dog", **ADAPTERS[method])
    few = replace(context, shots=context.shots[:2])
    unedited = plain(few)
    with erased(erasure) as there:
        own = plain(replace(there, shots=few.shots))
        none, half = (painted(merge(erasure=a, benign=0.0), there) for a in (0.0, 0.5))
    assert none == unedited and len({*map(tuple, (unedited, half, own))}) == 3


def test_half_of_a_membrane_is_a_membrane_of_half_the_scale(erased, context, tiny_sd, benign):
    """Beside the benign change of the weights below it."""
    tensors, path = benign
    erasure = overpaint.erase(tiny_sd, "spm", erase=["cat"], **ADAPTERS["spm"])
    weaker = replace(erasure, settings={**erasure.settings, "scale": erasure.settings["scale"] / 2}, manifest={})
    below = Erasure("none", changes={name: Replacement(tensor) for name, tensor in tensors.items()})
    with below.attached(tiny_sd), weaker.attached(tiny_sd):
        wanted = plain(replace(context, shots=context.shots[:2]))
    with erased(erasure) as there:
        assert painted(of_file(path, erasure=0.5), there) == wanted


def test_a_lora_and_an_erasure_file_are_benign_changes_too(context, tiny_sd, victim, tmp_path):
    pairs = factors(tiny_sd, cross_attention(tiny_sd, "to_v"))
    lora = write_kohya(pairs, tmp_path / "lora.safetensors")
    ours = tmp_path / "ours.safetensors"
    victim.save(ours)
    added = of_file(lora).given(tiny_sd)
    assert added.keys() == pairs.keys()
    for name, (up, down) in pairs.items():
        own = tiny_sd.named_parameters()[name].data
        assert torch.allclose(added[name].tensor - own, up @ down, atol=1e-5)
    given = of_file(ours).given(tiny_sd)
    with victim.attached(tiny_sd):
        parameters = tiny_sd.named_parameters()
        assert given.keys() == victim.changes.keys()
        assert all(torch.equal(change.tensor, parameters[name].data) for name, change in given.items())


def test_half_precision_is_merged_in_double_precision(tiny_sd):
    name = "conv_in.weight"
    own = {n: p.data.half() for n, p in tiny_sd.named_parameters().items()}
    benign = {name: Replacement((own[name].float() * 1.001).half())}
    change = benign[name].tensor.double() - own[name].double()

    class Half:
        def named_parameters(self):
            return {n: torch.nn.Parameter(tensor) for n, tensor in own.items()}

    found = merge(benign=0.5).merged(Half(), own, benign)
    assert found.keys() == {name} and found[name].dtype == torch.float16
    assert torch.equal(found[name], (own[name].double() + 0.5 * change).half())


def planned(*overrides):
    return plan("attack=merge", "concepts=church", "budget=smoke", *overrides)


@pytest.mark.parametrize("method", ["sld", "negative_prompt", "steerers", "saeuron", "sfd"])
def test_what_is_no_change_of_weights_is_refused_when_it_is_planned(method):
    with pytest.raises(overpaint.UserError, match=f"^attack=merge merges weights, and method={method} makes no change"):
        planned(f"method={method}")


def test_the_same_merge_of_the_unedited_model_is_planned_beside_the_control_and_the_floors():
    tasks = planned("method=uce", "attack.preset=mean").tasks.values()
    attacks = [t for t in tasks if t.stage == "attack" and t.config["attack"] == "merge"]
    victims = {(bool(t.inputs), t.config["concept"]["name"]) for t in attacks}
    assert {(True, "church"), (False, "church")} < victims
    assert len({name for _, name in victims}) == 3, "the church, a never-seen concept and an unrelated one"
    assert any("seed" in t.label for t in tasks if t.stage == "generate")


def test_a_guard_in_a_file_is_refused_as_a_victim_and_as_a_benign_change(context, tiny_sd, tmp_path):
    path = tmp_path / "guard.safetensors"
    overpaint.erase(tiny_sd, "negative_prompt", erase=["cat"]).save(path)
    with pytest.raises(overpaint.UserError, match="method=checkpoint makes no change of weights"):
        planned("method=checkpoint", f"checkpoint.file={path}")
    with pytest.raises(overpaint.UserError, match="holds an erasure of negative_prompt"):
        of_file(path).run(context)


def test_an_adapter_whose_output_is_not_linear_is_refused(context, tiny_sd):
    def adapted(change):
        change("interventions", torch.ones(3, 4))
        return nullcontext(tiny_sd)

    with pytest.raises(overpaint.UserError, match="not linear in interventions"):
        merge(benign=0.0, erasure=0.5).run(replace(context, adapted=adapted))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"erasure": -0.5}, "erasure"),
        ({"benign": -1.0}, "benign"),
        ({"steps": 0}, "steps"),
        ({"clip": 0.0}, "clip takes"),
        ({"benign": 0.0}, "merge changes nothing"),
    ],
)
def test_bad_input_is_refused(values, said):
    with pytest.raises(overpaint.UserError, match=said):
        merge(**values)


def test_a_checkpoint_that_does_not_exist_is_refused_when_it_is_planned():
    with pytest.raises(overpaint.UserError, match=r"^attack\.checkpoint=nowhere\.safetensors does not exist"):
        planned("method=uce", "attack.checkpoint=nowhere.safetensors")
