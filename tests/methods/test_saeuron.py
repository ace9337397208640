"""SAeUron's autoencoder, selection of features and intervention, against recordings of its official code and by hand."""

import pytest
import torch
from safetensors.torch import save_file

import overpaint
from official import by_name, distance, watched
from overpaint.blocks.draws import Draws
from overpaint.blocks.sparse_autoencoders import TENSORS, SparseAutoencoder
from overpaint.grid.registry import component
from overpaint.methods.saeuron import Reversal, interventions

SMALL = {
    "pictures": 2,
    "concept_pictures": 2,
    "picture_steps": 3,
    "iterations": 3,
    "batch_size": 32,
    "expansion": 2,
    "k": 4,
}
SMALL |= {"percentile": 90.0}


@pytest.fixture
def saeuron():
    return lambda **values: component("method", "saeuron").build(SMALL | values, seed=0)


@pytest.fixture
def autoencoder():
    """A random autoencoder of six dimensions with twelve latents."""
    generator = torch.Generator().manual_seed(0)
    shapes = dict(zip(TENSORS, ((12, 6), (6, 12), (12,), (6,)), strict=True))
    made = SparseAutoencoder({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()})
    made.unit_columns()
    return made


X = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))


def official_autoencoder(extra):
    tensors = (extra["encoder.weight"], extra["W_dec"].T, extra["encoder.bias"], extra["b_dec"])
    return SparseAutoencoder(dict(zip(TENSORS, tensors, strict=True)))


@pytest.mark.parametrize("dead", [0, 7, 40])
def test_official_loss_and_gradients(dead, saeuron, golden):
    meta, recorded, extra = golden("saeuron/autoencoder")
    made = official_autoencoder(extra)
    eraser = saeuron(k=meta["k"], compat="official", aux_weight=1 / 32)
    with watched() as seen:
        loss, _ = eraser.objective(made, extra["x"].flatten(0, 1), torch.arange(len(made)) < dead)
    loss.backward()
    values = [float(by_name(seen)[name][0]) for name in ("unexplained", "aux")]
    assert values == pytest.approx(recorded[f"loss.{dead}"].tolist(), rel=1e-5)
    names = ("encoder.weight", "W_dec", "encoder.bias", "b_dec")
    for name, ours in zip(names, made.masters.values(), strict=True):
        gradient = ours.grad.T if name == "W_dec" else ours.grad
        assert distance(gradient.flatten()[:: meta["every"]], recorded[f"grad.{dead}.{name}"]) < 1e-5, name


@pytest.mark.parametrize("tag", ["one", "two"])
def test_official_selection_and_intervention(tag, tiny_sd, golden):
    """Two sampler steps, one or two erased concepts; the first ones are erased."""
    meta, recorded, extra = golden("saeuron/autoencoder")
    erased = meta["erased"][tag]
    order = [*erased, *(name for name in meta["concepts"] if name not in erased)]
    rows = interventions(
        [extra[f"latents.{name}"].mean(dim=0) for name in order], len(erased), meta["percentile"], meta["multiplier"]
    )
    edit = reversal(tiny_sd, official_autoencoder(extra), rows.tolist(), official=True, k=meta["k"])
    for step, time in enumerate((900.0, 500.0)):
        features = rows[rows[:, 0] == step, 1].tolist()
        assert features == recorded[f"features.{tag}.{step}"].tolist()
        ours = edit(extra[f"map.{tag}"], torch.full((4,), time))
        assert distance(ours.detach(), recorded[f"hook.{tag}.{step}"]) < 1e-5


def test_the_loss_is_the_unexplained_variance_of_the_largest_latents_of_the_batch(autoencoder, saeuron):
    loss, used = saeuron(k=2).objective(autoencoder, X, torch.zeros(12, dtype=torch.bool))
    scores = autoencoder.scores(X).relu()
    level = scores.flatten().sort(descending=True).values[2 * len(X) - 1]
    z = scores * (scores >= level)
    error = X - autoencoder.decode(z)
    torch.testing.assert_close(loss, error.square().sum() / (X - X.mean(0)).square().sum())
    assert torch.equal(used, (z > 0).any(dim=0))
    assert (z > 0).sum(dim=1).float().std() > 0, "positions use different numbers of latents"


@pytest.mark.parametrize("compat", ["intended", "official"])
@pytest.mark.parametrize("count", [2, 7])
def test_dead_latents_learn_what_is_missing(autoencoder, saeuron, compat, count):
    dead = torch.arange(12) < count
    eraser = saeuron(k=2, compat=compat, aux_weight=0.5)
    with watched() as seen:
        loss, _ = eraser.objective(autoencoder, X, dead)
    plain, _ = eraser.objective(autoencoder, X, torch.zeros(12, dtype=torch.bool))
    scores = autoencoder.scores(X).relu()
    chosen = scores[:, :count].topk(min(3, count), dim=1)
    revived = torch.zeros(20, 12).scatter(1, chosen.indices, chosen.values)
    level = scores.flatten().sort(descending=True).values[2 * len(X) - 1]
    error = X - autoencoder.decode(scores * (scores >= level))
    guess, rest = autoencoder.directions(revived), error
    if compat == "official":
        dead_scores = scores[:, :count]
        level = dead_scores.flatten().sort(descending=True).values[min(3, count) * len(X) - 1]
        revived = torch.nn.functional.pad(dead_scores * (dead_scores >= level), (0, 12 - count))
        guess, rest = autoencoder.decode(revived), -error
    aux = min(count / 3, 1) * (guess - rest).square().sum() / (X - X.mean(0)).square().sum()
    torch.testing.assert_close(by_name(seen)["aux"][0], aux.detach())
    torch.testing.assert_close(loss, plain + 0.5 * aux)


def test_training_explains_more_and_keeps_the_norms(saeuron):
    rows = torch.randn(256, 3, generator=torch.Generator().manual_seed(0)) @ torch.randn(
        3, 8, generator=torch.Generator().manual_seed(1)
    )
    with watched() as seen:
        made = saeuron(expansion=4, iterations=160, batch_size=64, learning_rate=0.02).trained(rows, Draws(0))
    unexplained = by_name(seen)["unexplained"]
    assert len(unexplained) == 160 and unexplained[-1] < 0.3 * unexplained[0]
    torch.testing.assert_close(made.masters["decoder.weight"].norm(dim=0), torch.ones(32))


def test_features_that_are_the_concepts_own_are_selected_with_their_means():
    own = torch.tensor([[4.0, 1.0, 0.0, 1.0], [1.0, 1.0, 6.0, 0.0]])  # two steps, four latents
    others = torch.tensor([[0.0, 2.0, 1.0, 1.0], [2.0, 1.0, 0.0, 1.0]])
    rows = interventions([own, others, others], 1, 80.0, -3.0)
    mean = (own + 2 * others) / 3
    wanted = [[0, 0, -3 * 4.0, mean[0, 0]], [1, 2, -3 * 6.0, mean[1, 2]]]
    torch.testing.assert_close(rows, torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def reversal(model, autoencoder, rows, official=False, k=3, times=(900.0, 500.0)):
    parts = {name: tensor.detach() for name, tensor in autoencoder.masters.items()}
    parts |= {"interventions": torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)}
    return Reversal(parts, {"k": k, "official": official, "times": list(times)}, model)


MAP = X[:18].reshape(2, 9, 6).mT.reshape(2, 6, 3, 3)


def test_without_a_feature_the_map_is_kept_and_the_official_one_is_not(tiny_sd, autoencoder):
    at = torch.tensor([880.0, 880.0])
    torch.testing.assert_close(reversal(tiny_sd, autoencoder, [])(MAP, at), MAP)
    like = MAP.flatten(2).mT
    made = autoencoder.decode(autoencoder.encode(like, 3))
    official = reversal(tiny_sd, autoencoder, [], official=True)(MAP, at)
    torch.testing.assert_close(official.flatten(2).mT, 2 * made - like)


def test_selected_latents_are_reversed_where_they_are_active(tiny_sd, autoencoder):
    z = autoencoder.encode(MAP.flatten(2).mT, 3).detach()
    latent = int(z.sum(dim=(0, 1)).argmax())
    threshold = float(z[..., latent][z[..., latent] > 0].median())
    rows = [[1, latent, -2.0, threshold]]
    hit = z[..., latent] > threshold
    assert hit.any() and not hit.all()
    changed = z.clone()
    changed[..., latent] = torch.where(hit, -2 * z[..., latent], z[..., latent])
    wanted = MAP.flatten(2).mT + autoencoder.directions(changed - z)
    edit = reversal(tiny_sd, autoencoder, rows)
    torch.testing.assert_close(edit(MAP, torch.tensor([510.0, 510.0])).flatten(2).mT, wanted)
    mixed = edit(MAP, torch.tensor([510.0, 990.0])).flatten(2).mT  # the second row is at a step without a feature
    torch.testing.assert_close(mixed[0], wanted[0])
    torch.testing.assert_close(mixed[1], MAP.flatten(2).mT[1])


def test_the_last_concept_decides_on_a_feature_that_several_select(tiny_sd, autoencoder):
    latent = int(autoencoder.encode(MAP.flatten(2).mT, 3).sum(dim=(0, 1)).argmax())
    first, other, last = [1, latent, -2.0, 0.0], [1, (latent + 1) % 8, -1.0, 0.0], [1, latent, -5.0, 0.0]
    at = torch.tensor([500.0, 500.0])
    both, alone = (reversal(tiny_sd, autoencoder, rows)(MAP, at) for rows in ([first, other, last], [other, last]))
    assert torch.equal(both, alone)
    assert not torch.equal(both, reversal(tiny_sd, autoencoder, [other, first])(MAP, at))


def test_every_step_has_its_features_and_both_predictions_change(tiny_sd):
    erasure = overpaint.erase(tiny_sd, "saeuron", erase=["dog"], retain=["ship", "bird"], multiplier=-50.0, **SMALL)
    steps = erasure.parts["interventions"][:, 0]
    assert len(erasure.settings["times"]) == 3 and set(steps.tolist()) <= {0.0, 1.0, 2.0} and len(steps)
    x, embeds = tiny_sd.noise([0, 1]), tiny_sd.encode(["", "a dog"])
    with torch.no_grad():
        plain = tiny_sd.predict(x, erasure.settings["times"][1], embeds)
        with erasure.attached(tiny_sd):
            edited = tiny_sd.predict(x, erasure.settings["times"][1], embeds)
    assert all(not torch.equal(ours, theirs) for ours, theirs in zip(plain, edited, strict=True))


def test_a_multiplier_that_keeps_changes_only_rounding(tiny_sd):
    """A percentile that selects nothing leaves every prediction as it is."""
    erasure = overpaint.erase(tiny_sd, "saeuron", erase=["dog"], retain=["ship"], **SMALL)
    erasure.parts["interventions"] = erasure.parts["interventions"][:0]
    x, embeds = tiny_sd.noise([0]), tiny_sd.encode(["a dog"])
    with torch.no_grad():
        plain = tiny_sd.predict(x, 500, embeds)
        with erasure.attached(tiny_sd):
            torch.testing.assert_close(tiny_sd.predict(x, 500, embeds), plain)


def test_a_published_autoencoder_is_read(tiny_sd, tmp_path):
    width = 64
    W = torch.randn(2 * width, width, generator=torch.Generator().manual_seed(0))
    published = {
        "encoder.weight": W,
        "encoder.bias": torch.zeros(2 * width),
        "W_dec": W.clone(),
        "b_dec": torch.zeros(width),
    }
    save_file(published, tmp_path / "sae.safetensors")
    settings = SMALL | {"autoencoder": str(tmp_path / "sae.safetensors")}
    with watched() as seen:
        erasure = overpaint.erase(tiny_sd, "saeuron", erase=["dog"], retain=["ship"], **settings)
    assert torch.equal(erasure.parts["encoder.weight"], W) and "unexplained" not in by_name(seen)
    save_file({name: tensor[..., :5].contiguous() for name, tensor in published.items()}, tmp_path / "sae.safetensors")
    with pytest.raises(overpaint.UserError, match="the model needs"):
        overpaint.erase(tiny_sd, "saeuron", erase=["dog"], retain=["ship"], **settings)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"layer": "up_blocks.9"}, "layer"),
        ({"k": 5000}, "k=5000 is more than the 128 latents"),
        ({"percentile": 100.0}, "percentile"),
        ({"pictures": 0}, "pictures"),
    ],
)
def test_bad_values_are_refused(values, told, tiny_sd):
    with pytest.raises(overpaint.UserError, match=told):
        overpaint.erase(tiny_sd, "saeuron", erase=["dog"], retain=["ship"], **(SMALL | values))
