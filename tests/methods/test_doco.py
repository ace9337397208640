"""DoCo against recorded runs of its official code, with the same random draws, and against its identities."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

import overpaint
from official import by_name, distance, flat, parameters, recorded, watched
from overpaint.blocks.anchor_images import target_caption
from overpaint.grid.registry import component
from overpaint.methods.doco import FORMS, discriminator

#: Settings that are small enough for the tiny model.
SMALL = {
    "pictures": 4, "picture_steps": 1, "batch_size": 2, "warmup": 0, "iterations": 1, "learning_rate": 1e-3,
    "scale_learning_rate": False, "widths": [8, 12, 16, 16], "critic_learning_rate": 1e-3,
}  # fmt: skip
#: Concept types of the official code -> our rules.
RULES = {"nudity": "unsafe", "violence": "unsafe"}


def traced_erase(model, records=None, **arguments):
    """The erasure and the traced values, as lists by name."""
    with watched(records) as seen:
        erasure = overpaint.erase(model, "doco", **({"erase": ["dog"], "anchor": "cat"} | SMALL | arguments))
    return erasure, by_name(seen)


def of(tensors, prefix):
    """The tensors under a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def thinned(tensors, like, every):
    """The entries that the recording ``like`` holds: all, or every n-th one."""
    return {
        name: t if t.shape == like[name].shape else t.flatten()[::every] for name, t in tensors.items() if name in like
    }


def before_norm(name):
    """Biases that batch normalisation removes: their gradients are rounding noise."""
    return name in ("2.bias", "5.bias", "8.bias")


@pytest.mark.parametrize("surgery", [True, False])
def test_embeddings_learn_in_the_rows_of_the_concepts_words_alone(tiny_sd, surgery):
    arguments = {"erase": ["black dog"], "anchor": "dog", "train": "embedding", "iterations": 2, "surgery": surgery}
    erasure, seen = traced_erase(tiny_sd, **arguments)
    ((name, change),) = erasure.changes.items()
    moved = (change.tensor != tiny_sd.named_parameters()[name]).any(dim=1).nonzero().flatten().tolist()
    words = sorted(set(tiny_sd.token_ids("black")[1:-1]) - set(tiny_sd.token_ids("dog")))
    assert moved == words
    for gradients in (of for kind in ("gradients", "stepped") for of in seen[kind]):
        assert gradients[name].any(dim=1).nonzero().flatten().tolist() == words


def test_an_anchor_with_the_concepts_words_leaves_no_embedding_to_learn(tiny_sd):
    with pytest.raises(overpaint.UserError, match="train=embedding has nothing to train"):
        traced_erase(tiny_sd, erase=["dog"], anchor="black dog", train="embedding")


@pytest.mark.parametrize("tag", ["surgery_style", "plain_prior"])
def test_official_code(tag, tiny_sd_float64, golden):
    model = tiny_sd_float64
    meta, weights, extra = golden(f"doco/{tag}")
    every, surgery = meta["every"], meta["surgery"]
    anchor, _, name = meta["target"].rpartition("+")
    start = of(extra, "D_init.model.")
    erasure, seen = traced_erase(
        model,
        recorded(extra, "z", "input_ids", "anchor_ids", "t", "noise") | {"critic.0": start},
        erase=[name],
        anchor=anchor or "painting",
        rule=RULES.get(meta["concept_type"], meta["concept_type"]),
        captions=meta["captions"],
        augment=not meta["noaug"],
        compat="official",
        loss={"model-based": "model", "noise-based": "noise"}[meta["loss_type"]],
        prior=meta["prior"],
        prior_weight=meta["prior_loss_weight"],
        surgery=surgery,
        surgery_strength=meta["lambda_"],
        widths=meta["D_widths"],
        critic_learning_rate=meta["dlr"],
        warmup=meta["warm_up"],
        iterations=meta["steps"],
        learning_rate=meta["lr"],
        batch_size=meta["batch"],
        max_norm=meta["max_grad_norm"],
    )
    for name in ("x0_anchor", "x0_concept"):
        for step, ours in enumerate(seen[name]):
            assert distance(ours.flatten()[::every], extra[f"{name}.{step}"]) < 1e-5, (name, step)
    scalars = {"bce": "bce", "correction": "adv_losses", "prior": "prior_losses", "clip_norm": "clip_norms"}
    for ours, theirs in scalars.items():
        if theirs in extra:
            assert torch.stack(seen[ours]).tolist() == pytest.approx(extra[theirs].flatten().tolist(), rel=1e-5), ours

    groups = {"stepped": "step_grad."}
    groups |= (
        {"prior_gradients": "raw_prior_grad.", "gradients": "raw_adv_grad."} if surgery else {"gradients": "raw_grad."}
    )
    for ours, prefix in groups.items():
        wanted = of(extra, prefix)
        assert len(wanted) == 14
        assert distance(flat(thinned(seen[ours][0], wanted, every), wanted), flat(wanted, wanted)) < 1e-4, ours
    for step in (0, 1):
        wanted = {name: g for name, g in of(extra, f"D_grad.{step}.model.").items() if not before_norm(name)}
        ours = thinned(seen["critic_gradients"][step], wanted, every)
        assert distance(flat(ours, wanted), flat(wanted, wanted)) < 1e-4, step

    wanted = {name: tensor for name, tensor in weights.items() if not name.startswith("D.")}
    assert erasure.changes.keys() == wanted.keys()
    moved = {name: change.tensor for name, change in erasure.changes.items()}
    groups = (thinned(moved, wanted, every), wanted, thinned(parameters(model, wanted), wanted, every))
    assert distance(*(flat(group, wanted) for group in groups)) < 2e-3
    wanted = {name: tensor for name, tensor in of(weights, "D.model.").items() if not before_norm(name)}
    groups = (thinned(seen["critic"][-1], wanted, every), wanted, thinned(start, wanted, every))
    assert distance(*(flat(group, wanted) for group in groups)) < 2e-3


def test_official_captions(golden):
    meta, _, _ = golden("doco/captions")
    for concept_type, table in meta["table"].items():
        anchor, _, name = table["target"].rpartition("+")
        rule = RULES.get(concept_type, concept_type)
        for caption, official in table["rows"]:
            assert [target_caption(rule, name, caption, form, FORMS, anchor) for form in range(3)] == official


def test_during_the_warm_up_only_the_discriminator_learns(tiny_sd):
    erasure, seen = traced_erase(tiny_sd, iterations=3, warmup=2)
    assert len(seen["critic"]) == 3 and len(seen["stepped"]) == 1
    assert not any(torch.equal(seen["critic"][0][name], seen["critic"][1][name]) for name in ("0.weight", "2.weight"))
    _, official = traced_erase(tiny_sd, iterations=4, warmup=2, compat="official")
    assert len(official["stepped"]) == 1
    base = tiny_sd.named_parameters()
    assert not any(torch.equal(change.tensor, base[name]) for name, change in erasure.changes.items())


def test_the_losses_follow_from_the_base_predictions(tiny_sd_float64):
    model = tiny_sd_float64
    network = discriminator(4, 16, SMALL["widths"]).double()
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    t = torch.tensor([100, 300, 200, 50])
    records = {"critic.0": start, "noise.0": model.noise(range(4)), "z.0": model.noise(range(4, 8)), "t.0": t}
    _, seen = traced_erase(model, records, templates=["{}"], augment=False, flip=False)
    x_t = model.add_noise(records["z.0"], records["noise.0"], t)
    with torch.no_grad():
        named, anchored = (model.predict(x_t[:2], t[:2], model.encode([text] * 2)) for text in ("a dog", "a cat"))
        kept = model.predict(x_t[2:], t[2:], model.encode(["a cat"] * 2))
        concept, anchor = (model.clean_of(e, x_t[:2], t[:2]) for e in (named, anchored))
        logits = [network(x) for x in (concept, anchor, concept)]
    wanted = [
        binary_cross_entropy_with_logits(x, torch.full_like(x, y)) for x, y in zip(logits, (0, 0, 1), strict=True)
    ]
    assert torch.stack(seen["bce"]).tolist() == pytest.approx([float(x) for x in wanted], rel=1e-6)
    assert float(seen["prior"][0]) == pytest.approx(float(mse_loss(kept, records["noise.0"][2:])), rel=1e-6)


def test_surgery_removes_what_opposes_the_prior():
    g, h = (torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (0, 1))
    build = component("method", "doco").build
    h = -torch.sign((g * h).sum()) * h  # a conflict
    after = build({}).operated(g, h)
    assert abs(float((after * h).sum())) < 1e-6 and not torch.equal(after, g)
    assert torch.equal(build({}).operated(g, -h), g), "without a conflict nothing changes"
    half = build({"surgery_strength": 0.5}).operated(g, h)
    torch.testing.assert_close(half, (g + after) / 2)
    released = build({"compat": "official"}).operated(1e-3 * g, h)
    assert float(torch.cosine_similarity(released.flatten(), h.flatten(), dim=0)) > 0.9, "the step follows the prior"


@pytest.mark.parametrize(("train", "compat"), [("full", "official"), ("full", "intended"), ("embedding", "official")])
def test_official_surgery_acts_on_cross_attention_only(train, compat, tiny_sd_float64, monkeypatch):
    monkeypatch.setattr("overpaint.methods.doco.DoCo.operated", lambda self, g, h: torch.full_like(g, 7.0))
    values = {"train": train, "compat": compat, "iterations": 1, "warmup": 0}
    _, seen = traced_erase(tiny_sd_float64, **values)
    operated = {name for name, gradient in seen["stepped"][0].items() if (gradient == 7).all()}
    cross = {p.name for p in tiny_sd_float64.parameters(tiny_sd_float64.denoiser_names) if p.attention == "cross"}
    trained = set(seen["stepped"][0])
    assert operated == (trained & cross if compat == "official" else trained)
    assert bool(operated) == (train == "full")


@pytest.mark.parametrize(("compat", "name"), [("intended", "long-haired dog"), ("official", "long haired dog")])
def test_official_captions_have_no_hyphens_in_the_concepts_name(compat, name, tiny_sd):
    _, seen = traced_erase(tiny_sd, erase=["long-haired dog"], compat=compat, iterations=1, warmup=0)
    anchors = seen["anchor_captions"][0]
    assert anchors and all(name in caption for caption in seen["captions"][0][: len(anchors)])


def test_gradients_are_clipped_together():
    found = [torch.full((2, 2), 3.0), torch.full((4,), 4.0)]
    build = component("method", "doco").build
    clipped = build({}).clipped(found)
    assert float(torch.cat([g.flatten() for g in clipped]).norm()) == pytest.approx(1, rel=1e-4)
    assert all(torch.equal(one, two) for one, two in zip(build({"max_norm": 0.0}).clipped(found), found, strict=True))


@pytest.mark.parametrize(("side", "layers", "logits"), [(64, 4, 3), (32, 4, 1), (16, 3, 1), (8, 2, 1)])
def test_the_discriminator_fits_the_latents(side, layers, logits):
    network = discriminator(4, side, [64, 128, 256, 512])
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in network) == layers + 1
    assert network(torch.zeros(2, 4, side, side)).shape == (2, 1, logits, logits)
    if side == 64:
        assert sum(p.numel() for p in network.parameters()) == 2_767_553, "that of the official code"


@pytest.mark.parametrize("train, tensors", [("kv", 14), ("full", 324)])
def test_all_of_the_group_learns_and_nothing_else(tiny_sd, train, tensors):
    erasure, seen = traced_erase(tiny_sd, train=train)
    assert len(erasure.changes) == len(seen["gradients"][0]) == tensors


def test_the_image_itself_can_stand_for_the_anchor(tiny_sd):
    clean = tiny_sd.noise(range(4))
    _, seen = traced_erase(tiny_sd, {"z.0": clean, "t.0": torch.tensor([9, 99, 9, 9])}, loss="noise", augment=False)
    assert distance(seen["x0_anchor"][0], clean[:2]) < 1e-4


@pytest.mark.parametrize(
    "values, told",
    [
        ({"surgery": True, "prior": False}, "surgery=true needs prior=true"),
        ({"warmup": 5, "iterations": 5}, "warmup=5 must be smaller than iterations=5"),
        ({"widths": []}, "widths"), ({"widths": [0]}, "widths"), ({"batch_size": 0}, "batch_size"),
        ({"rule": "verse"}, "rule"), ({"anchor": ""}, "anchor"), ({"max_norm": -1.0}, "max_norm"),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(tiny_sd, values, told):
    with pytest.raises(overpaint.UserError, match=told):
        traced_erase(tiny_sd, **values)
