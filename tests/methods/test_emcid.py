"""EMCID against vectors and tensors of its official code, with the same random draws, and against its identities."""

import pytest
import torch

import overpaint
from official import distance, parameters, watched
from overpaint.blocks.prior import read_captions
from overpaint.grid.registry import component
from overpaint.methods.emcid import Sentences, measured, passing, second_moments
from overpaint.models.erasure import Erasure

Z_TOLERANCE = {"f32": 1e-4, "f64": 1e-9}
#: The official code rounds each update to float32 before it measures the next layer.
TOLERANCE = {"f32": 1e-4, "f64": 1e-6}


#: Enough tokens for the tiny encoder's 96 inputs.
CAPTIONS = read_captions("testbed/captions")[:60]


def eraser(**values):
    return component("method", "emcid").build(values, seed=0)


def traced_erase(model, records=None, **arguments):
    """The erasure, its targets Z and the traced losses."""
    small = {"picture_steps": 1, "mom2_captions": CAPTIONS}
    with watched(records) as seen:
        erasure = overpaint.erase(model, "emcid", **(small | arguments))
    (Z,) = (step["z"] for step in seen if "z" in step)
    return erasure, Z, [float(step["loss"]) for step in seen if "loss" in step]


def stream(model, layer, source):
    """The residual stream (n, r, d) after a block at the edited positions."""
    with torch.no_grad(), passing(layer.block) as seen:
        model.encode_ids(source.ids, source.mask)
        return source.rows(seen[layer.block][1])


@pytest.fixture
def model(tiny_sd_in, precision):
    return tiny_sd_in(precision)


@pytest.mark.parametrize("precision", ["f32", "f64"])
def test_official_targets(model, precision, golden):
    meta, official, extra = golden(f"emcid/{precision}/z_align")
    settings = {"templates": meta["prompts"], "layers": [meta["layer"]], "compat": "official"}
    _, Z, losses = traced_erase(
        model,
        extra,
        erase=[meta["source"]],
        anchor=meta["dest"],
        iterations=meta["steps"],
        z_learning_rate=meta["lr"],
        weight_decay=meta["weight_decay"],
        clamp=meta["clamp"],
        text_weight=meta["text_weight"],
        **settings,
    )
    start = stream(model, model.text_layers()[meta["layer"]], eraser(**settings).sentences(model, meta["source"]))[0]
    assert len(losses) == meta["steps"]
    assert distance(Z, official["z"][None], start) < Z_TOLERANCE[precision]


@pytest.mark.parametrize("precision", ["f32", "f64"])
@pytest.mark.parametrize("tag", ["single", "multilayer"])
def test_official_edit(tag, model, precision, golden):
    meta, official, extra = golden(f"emcid/{precision}/{tag}")
    method = eraser(
        compat="official",
        templates=meta["requests"][0]["prompts"],
        **{name: meta[name] for name in ("layers", "mom2_weight", "edit_weight", "num_edit_tokens")},
    )
    sources = [method.sentences(model, request["source"]) for request in meta["requests"]]
    Z = torch.stack([extra[f"z.{n}"] for n in range(len(sources))])
    moments = [extra[f"cov.{number}"] for number in meta["layers"]]
    changes, _ = method.write(model, method.edited_layers(model), sources, Z, moments)
    with Erasure("emcid", changes=changes).attached(model):
        ours = parameters(model, changes)
    assert ours.keys() == official.keys()
    for name, tensor in official.items():
        assert distance(ours[name], tensor, model.named_parameters()[name].data) < TOLERANCE[precision], name


SMALL = {"erase": ["dog"], "anchor": "cat", "iterations": 1}


def first_step(model):
    """x_t, t and the draws that reproduce them, for one sentence."""
    x_t, t = model.noise([5]), torch.tensor([300])
    return x_t, t, {"x.0": x_t, "t.0": t}


@pytest.mark.parametrize("noise_loss", ["anchor", "esd", "off"])
def test_the_first_loss_follows_from_the_base_predictions(tiny_sd_float64, noise_loss):
    model = tiny_sd_float64
    x_t, t, records = first_step(model)
    _, _, (loss,) = traced_erase(
        model, records, templates=["a photo of {}"], noise_loss=noise_loss, esd_mu=2.0, text_weight=0.3, **SMALL
    )
    source, anchor = (Sentences.of(model, ["a photo of {}"], name, 1) for name in ("dog", "cat"))
    if noise_loss == "esd":
        anchor = Sentences.of(model, ["{}"], "", 1)
    with torch.no_grad():
        s, g = source.encode(model, source), anchor.encode(model, anchor)
        named, wanted = (model.predict(x_t, t, embeds) for embeds in (s, g))
    assert s.shape[1] == 6 and g.shape[1] == (2 if noise_loss == "esd" else 6), "contexts are as long as their sentence"
    target = wanted - 2 * (named - wanted) if noise_loss == "esd" else wanted
    expected = 0.3 * float(torch.nn.functional.mse_loss(s[:, -1], g[:, -1]))
    if noise_loss != "off":
        expected += float(torch.nn.functional.mse_loss(named, target))
    assert abs(loss / expected - 1) < 1e-9


def test_a_concept_mapped_to_itself_has_nothing_to_learn(tiny_sd_float64):
    _, _, losses = traced_erase(tiny_sd_float64, **(SMALL | {"anchor": None, "default_anchor": "dog", "iterations": 2}))
    assert losses == [0, 0]


def test_the_target_stays_within_its_ball(tiny_sd_float64):
    model = tiny_sd_float64
    source = eraser().sentences(model, "dog")
    h = stream(model, model.text_layers()[1], source).mean(dim=0)
    _, Z, _ = traced_erase(model, z_learning_rate=100.0, clamp=0.25, **(SMALL | {"noise_loss": "off"}))
    torch.testing.assert_close((Z - h).norm(), 0.25 * h.norm())


def test_the_decay_weighs_the_norm_and_not_its_square(tiny_sd_float64):
    """If the loss has no other term, the second loss is w ‖δ‖/‖h‖² for the δ of one Adam step."""
    model, settings = tiny_sd_float64, {"noise_loss": "off", "text_weight": 1e-3, "weight_decay": 10.0}
    _, _, losses = traced_erase(model, **(SMALL | settings | {"iterations": 2}))
    _, first, _ = traced_erase(model, **(SMALL | settings))
    h = stream(model, model.text_layers()[1], eraser().sentences(model, "dog")).mean(dim=0)
    assert abs(losses[1] - losses[0] - 10 * float((first - h).norm() / h.norm() ** 2)) < 1e-3


@pytest.mark.parametrize("compat", ["intended", "official"])
def test_where_the_target_starts(tiny_sd_float64, compat):
    """The target starts at the mean over the sentences, or at the first sentence."""
    model = tiny_sd_float64
    _, Z, _ = traced_erase(model, compat=compat, **(SMALL | {"iterations": 0}))
    h = stream(model, model.text_layers()[1], eraser().sentences(model, "dog"))
    torch.testing.assert_close(Z, h.mean(dim=0) if compat == "intended" else h[0])


def test_positions(tiny_sd):
    """The last word piece of the name at any position, then end token and padding."""
    sentences = Sentences.of(tiny_sd, ["{} in a photo", "a photo of {}"], "snoopy", 4)
    assert len(tiny_sd.token_ids("snoopy in a photo")) == 11
    found = [[int(row[:, r].argmax()) for r in range(4)] for row in sentences.positions]
    assert found == [[6, 10, 11, 12], [9, 10, 11, 12]]
    assert sentences.mask.sum(dim=1).tolist() == [11, 11]
    hidden = torch.randn(2, 77, 48)
    assert torch.equal(sentences.ends(hidden), hidden[:, 10])
    assert torch.equal(sentences.rows(hidden)[0, 0], hidden[0, 6])


@pytest.mark.parametrize("count", [2, 4])
def test_several_positions_a_concept(tiny_sd_float64, count):
    erasure, Z, _ = traced_erase(tiny_sd_float64, num_edit_tokens=count, **(SMALL | {"erase": ["dog", "ship"]}))
    assert Z.shape == (2 * count, 48)
    assert {c.up.shape[1] if hasattr(c, "up") else 2 * count for c in erasure.changes.values()} == {2 * count}


@pytest.fixture(scope="module")
def problem(tiny_sd_float64):
    """Layers, the sentences of two concepts, random Z (2, d), and second moments of random keys."""
    model = tiny_sd_float64
    g = torch.Generator().manual_seed(2)
    layers = model.text_layers()[:2]
    sources = [Sentences.of(model, ["painting by {}", "an image of {}"], name, 1) for name in ("van gogh", "snoopy")]
    keys = torch.randn(400, 96, generator=g, dtype=torch.float64) * 0.2
    return layers, sources, torch.randn(2, 48, generator=g, dtype=torch.float64), [keys.T @ keys / 400] * 2


def gap(model, layers, sources, Z, changes):
    with Erasure("emcid", changes=changes).attached(model):
        return float((measured(model, sources, layers[-1].module, layers[-1].block)[1] - Z).norm())


def test_one_layer_without_captions_reaches_its_target(tiny_sd_float64, problem):
    layers, sources, Z, moments = problem
    changes, _ = eraser(mom2_weight=1e-9).write(tiny_sd_float64, layers[1:], sources, Z, moments[1:])
    assert gap(tiny_sd_float64, layers, sources, Z, changes) < 1e-6


def test_the_intended_residual_approaches_the_target_and_the_released_one_does_not(tiny_sd_float64, problem):
    layers, sources, Z, moments = problem
    before = gap(tiny_sd_float64, layers, sources, Z, {})
    after = {}
    for compat in ("intended", "official"):
        changes, _ = eraser(mom2_weight=0.5, compat=compat).write(tiny_sd_float64, layers, sources, Z, moments)
        after[compat] = gap(tiny_sd_float64, layers, sources, Z, changes)
    assert after["intended"] < 0.1 * before and after["official"] > 5 * after["intended"]


def test_at_equal_weights_it_is_memit(tiny_sd_float64, problem):
    layers, sources, Z, moments = problem
    changes, _ = eraser(mom2_weight=7.0).write(tiny_sd_float64, layers[1:], sources, Z, moments[1:])
    K, H = measured(tiny_sd_float64, sources, layers[1].module, layers[1].block)
    expected = torch.linalg.solve(7 * moments[1] + K.T @ K, K.T) @ (Z - H)
    (change,) = changes.values()
    torch.testing.assert_close(change.up @ change.down, expected.T)


def test_the_edit_weight_moves_the_balance(tiny_sd_float64, problem):
    """With a = 2 ``edit_weight``, the weight of captions is multiplied by (2 − a)/a."""
    layers, sources, Z, moments = problem
    one, _ = eraser(mom2_weight=6.0, edit_weight=0.75).write(tiny_sd_float64, layers, sources, Z, moments)
    two, _ = eraser(mom2_weight=2.0, edit_weight=0.5).write(tiny_sd_float64, layers, sources, Z, moments)
    for name in one:
        torch.testing.assert_close(one[name].up @ one[name].down, two[name].up @ two[name].down)


def test_a_great_weight_on_captions_leaves_the_weights(tiny_sd_float64, problem):
    layers, sources, Z, moments = problem
    changes, _ = eraser(mom2_weight=1e12).write(tiny_sd_float64, layers, sources, Z, moments)
    assert max((c.up @ c.down).norm() for c in changes.values()) < 1e-8


def test_the_order_of_concepts_does_not_matter(tiny_sd_float64, problem):
    layers, sources, Z, moments = problem
    one, _ = eraser(mom2_weight=2.0).write(tiny_sd_float64, layers, sources, Z, moments)
    two, _ = eraser(mom2_weight=2.0).write(tiny_sd_float64, layers, sources[::-1], Z.flip(0), moments)
    for name in one:
        torch.testing.assert_close(one[name].up @ one[name].down, two[name].up @ two[name].down, rtol=0, atol=1e-12)


def test_a_target_that_was_not_moved_changes_nothing(tiny_sd_float64):
    erasure, _, _ = traced_erase(tiny_sd_float64, **(SMALL | {"iterations": 0}))
    assert max((c.up @ c.down).norm() for c in erasure.changes.values()) < 1e-12
    official, _, _ = traced_erase(tiny_sd_float64, compat="official", **(SMALL | {"iterations": 0}))
    assert max((c.up @ c.down).norm() for c in official.changes.values()) > 1e-4, "the released residual changes it"


def test_second_moments_leave_padding_out(tiny_sd_float64):
    model, captions = tiny_sd_float64, ["a dog", "a church in the sky", "snoopy " * 80]
    layers = model.text_layers()
    moments, tokens = second_moments(model, layers, captions)
    rows = []
    for caption in captions:
        ids = torch.tensor([model.token_ids(caption)])
        with torch.no_grad(), passing(layers[1].module) as seen:
            model.encode_ids(ids)
        rows.append(seen[layers[1].module][0][0])
    K = torch.cat(rows)
    assert len(K) == tokens and len(rows[-1]) == model.tokens, "a long caption is cut"
    torch.testing.assert_close(moments[1], K.T @ K / len(K))


def test_only_the_asked_blocks_change(tiny_sd):
    erasure, _, _ = traced_erase(tiny_sd, **SMALL)
    assert list(erasure.changes) == [f"text_model.encoder.layers.{n}.mlp.fc2.weight" for n in (0, 1)]
    erasure, _, _ = traced_erase(tiny_sd, layers=[2], **SMALL)
    assert list(erasure.changes) == ["text_model.encoder.layers.2.mlp.fc2.weight"]


def test_half_precision_weights_are_edited_in_float64(goldens):
    model = overpaint.load_model(str(goldens / "tiny_sd"), dtype="bfloat16")
    erasure, Z, _ = traced_erase(model, **SMALL)
    assert Z.dtype == torch.float32
    assert {getattr(c, "up", torch.zeros(0)).dtype for c in erasure.changes.values()} == {torch.float32}


@pytest.mark.parametrize(
    "values",
    [
        {"layers": [1, 0]}, {"layers": [3]}, {"layers": []}, {"layers": [0, 0]}, {"templates": ["a photo"]},
        {"templates": []}, {"edit_weight": 1.0}, {"mom2_weight": 0}, {"mom2_captions": []},
        {"mom2_captions": ["a dog", "a cat"]}, {"num_edit_tokens": 0}, {"num_edit_tokens": 77}, {"clamp": -1},
        {"mom2_captions": "testbed/capshuns"},
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(tiny_sd, values):
    with pytest.raises(overpaint.UserError, match=next(iter(values)).replace("mom2_captions", "caption")):
        overpaint.erase(tiny_sd, "emcid", **(SMALL | {"noise_loss": "off", "mom2_captions": CAPTIONS} | values))
