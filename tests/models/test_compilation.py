"""What a compiled denoiser leaves out: texts that it has read, and the second half of a guided batch before any text."""

import pytest
import torch


@pytest.fixture
def plainly(monkeypatch):
    """The network runs as it is: only what is left out is tested."""
    monkeypatch.setattr(torch, "compile", lambda network: network)


@pytest.fixture
def rows(tiny_sd):
    """How many rows a layer computes: a function that counts from now on."""
    hooks = []

    def count(name):
        seen = []
        layer = tiny_sd.denoiser.get_submodule(name)
        hooks.append(layer.register_forward_pre_hook(lambda layer, inputs: seen.append(len(inputs[0]))))
        return seen

    yield count
    for hook in hooks:
        hook.remove()


def predicted(model, texts, latents, time=500):
    with torch.no_grad():
        return model.predict(latents, time, model.encode(texts))


TEXTS = ["a dog", "a cat", "a house", "a boat"]


def test_a_text_is_read_once_and_a_new_one_again(tiny_sd, plainly, rows):
    latents = tiny_sd.noise(range(4))
    plain = [predicted(tiny_sd, texts, latents) for texts in (TEXTS, TEXTS[::-1])]
    seen = rows(f"{next(iter(tiny_sd.cross_attention()))}.attn2.to_k")
    with tiny_sd.compiled():
        for _ in range(3):
            torch.testing.assert_close(predicted(tiny_sd, TEXTS, latents), plain[0])
        assert seen == [4]
        torch.testing.assert_close(predicted(tiny_sd, TEXTS[::-1], latents), plain[1])
        assert seen == [4, 4]
        predicted(tiny_sd, TEXTS[:2], latents[:2])
        assert seen == [4, 4, 2]


def test_layers_before_the_text_compute_a_guided_batch_once(tiny_sd, plainly, rows):
    guided, other = tiny_sd.noise([0, 1]).repeat(2, 1, 1, 1), tiny_sd.noise(range(4))
    plain = [predicted(tiny_sd, TEXTS, latents) for latents in (guided, other)]
    seen = {name: rows(name) for name in tiny_sd.before_the_text()}
    after = rows(f"{next(iter(tiny_sd.cross_attention()))}.attn2")
    with tiny_sd.compiled():
        torch.testing.assert_close(predicted(tiny_sd, TEXTS, guided), plain[0])
        torch.testing.assert_close(predicted(tiny_sd, TEXTS, other), plain[1])
        predicted(tiny_sd, TEXTS, guided, torch.tensor([500, 500, 100, 100]))
    for place, counted in seen.items():
        assert counted == [2, 4, 4], place
    assert after == [4, 4, 4]


def test_no_text_reaches_the_layers_before_it(tiny_sd, tiny_sdxl):
    """Their outputs are the same for any text; those of the first layer with text are not."""
    for model in (tiny_sd, tiny_sdxl):
        names = [*model.before_the_text(), next(iter(model.cross_attention()))]
        of_one, of_another = (outputs(model, names, text) for text in ("a dog", "a house on a hill"))
        same = [all(map(torch.equal, flat(a), flat(b))) for a, b in zip(of_one, of_another, strict=True)]
        assert same == [True] * (len(names) - 1) + [False]


def outputs(model, names, text):
    """What these layers give for a text."""
    given = []
    layers = [model.denoiser.get_submodule(name) for name in names]
    hooks = [layer.register_forward_hook(lambda layer, inputs, output: given.append(output)) for layer in layers]
    predicted(model, [text], model.noise([0]))
    for hook in hooks:
        hook.remove()
    return given


def flat(output):
    return [output] if isinstance(output, torch.Tensor) else [tensor for part in output for tensor in flat(part)]


def test_a_guard_gets_the_whole_network(tiny_sd, plainly, rows, monkeypatch):
    monkeypatch.setattr(tiny_sd, "guidance", type("Guarded", (), {"guard": object()})())
    name = f"{next(iter(tiny_sd.cross_attention()))}.attn2.to_k"
    text, first = rows(name), rows("conv_in")
    with tiny_sd.compiled():
        for _ in range(2):
            predicted(tiny_sd, TEXTS, tiny_sd.noise([0, 1]).repeat(2, 1, 1, 1))
    assert text == first == [4, 4]


def test_the_network_has_its_own_layers_afterwards(tiny_sd, plainly):
    before, layers = tiny_sd.denoiser.state_dict(), list(tiny_sd.denoiser.modules())
    with pytest.raises(RuntimeError, match="inside"), tiny_sd.compiled():
        raise RuntimeError("inside")
    assert list(tiny_sd.denoiser.modules()) == layers
    assert tiny_sd.denoiser.state_dict().keys() == before.keys()
    assert tiny_sd.vae.decoder.conv_in.weight.is_contiguous()
