"""MMA-Diffusion's text attack against recorded runs of the official code, and against its definition."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity, one_hot

import overpaint
from official import by_name, distance, watched
from overpaint.attacks.mma import banned, containing, fragments, pooled
from overpaint.blocks.clip import OwnTower
from overpaint.blocks.draws import Draws, replayed, traced
from overpaint.grid.registry import component

COMPAT = ["official", "intended"]


def mma(seed=0, **values):
    small = {"tokens": 4, "steps": 5, "candidates": 24, "top": 12, "restarts": 1}
    return component("attack", "mma").build(small | values, seed=seed)


def target_of(model, text="a photo of a dog"):
    return pooled(model, [model.token_ids(text)])


def searched(model, state="a b c d", seed=0, forbidden=(971, 972), **values):
    with watched() as seen:
        found = mma(**values).search(model, target_of(model), state, forbidden, Draws(seed))
    return found, by_name(seen)


@pytest.mark.parametrize("tag", ["gcg", "gcg_small", "gcg_home"])
def test_official_search(tag, golden, tiny_sd_float64):
    """In ``gcg_small``, truncation at the end of a text affects a state. In ``gcg_home``, the best state is not the last."""
    meta, results, extra = golden(f"mma/{tag}")
    attack = mma(steps=meta["steps"], candidates=meta["batch"], top=meta["topk"], compat="official")
    target = target_of(tiny_sd_float64, meta["prompt"])
    assert distance(target, results["target"]) < 1e-6
    with watched({name: columns.long() for name, columns in extra.items()}) as seen:
        text, loss = attack.search(tiny_sd_float64, target, meta["start"], meta["banned"], Draws(0))
    seen = by_name(seen)
    assert len(seen["state"]) == meta["steps"] and seen["state"] == meta["states"]
    assert seen["loss"] == pytest.approx(results["loss"].tolist(), rel=1e-6, abs=1e-6)
    for n, (tried, texts) in enumerate(zip(seen["candidates"], seen["texts"], strict=True)):
        assert torch.equal(tried, results[f"candidates.{n}"].long())
        passed = meta["filtered"][n]
        assert texts + [texts[-1]] * (len(passed) - len(texts)) == passed, "the official code repeats the last one"
        if f"grad.{n}" in results:
            ours, theirs = seen["gradient"][n], results[f"grad.{n}"]
            assert ours[:, meta["banned"]].isinf().all()
            allowed = sorted({*range(973)} - {*meta["banned"]})
            assert distance(ours[:, allowed], theirs[:, allowed]) < 1e-6
    assert (text, meta["states"].index(text)) == (meta["best"], meta["best_step"] - 1)
    assert loss == pytest.approx(meta["best_loss"], rel=1e-6, abs=1e-6)


def test_the_feature_is_that_of_the_end_token_in_the_padded_prompt(tiny_sd):
    texts = ["a dog", "a ship"]
    ours = pooled(tiny_sd, [tiny_sd.token_ids(text) for text in texts])
    torch.testing.assert_close(ours, OwnTower(tiny_sd).text_features(texts))


def one_hot_gradient(model, ids, target):
    """∂loss/∂onehot (tokens, vocabulary) of the whole padded prompt, by definition."""
    padded = torch.tensor([[971, *ids, 972, *[972] * (75 - len(ids))]])
    rows = one_hot(padded, 973).float().requires_grad_()
    states = model.encode_embeddings(rows @ model.token_table.detach(), padded)
    (1 - cosine_similarity(states[:, len(ids) + 1], target)).sum().backward()
    return rows.grad[0]


@pytest.mark.parametrize("compat", COMPAT)
def test_gradients_are_those_of_the_positions_or_of_the_ones_before(compat, tiny_sd):
    ids, target = tiny_sd.token_ids("a red ship")[1:-1], target_of(tiny_sd)
    whole = one_hot_gradient(tiny_sd, ids, target)
    ours = mma(compat=compat).gradient(tiny_sd, torch.tensor([ids]), target)
    first = 0 if compat == "official" else 1
    torch.testing.assert_close(ours, whole[first : first + len(ids)], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(ours, whole[1 - first : 1 - first + len(ids)], rtol=1e-2, atol=1e-6)


def test_copies_have_one_word_of_the_best_in_evenly_spread_places(tiny_sd):
    ids = torch.tensor([tiny_sd.token_ids("a red ship")[1:-1]])
    k, gradient = ids.shape[1], torch.randn(ids.shape[1], 973, generator=torch.Generator().manual_seed(0))
    attack = mma(candidates=8, top=3)
    with replayed({"draw.0": torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])}):
        tried = attack.exchanged(ids, gradient.clone(), [7], Draws(0))
    gradient[:, 7] = float("inf")
    for n, row in enumerate(tried):
        place = n * k // 8
        word = gradient[place].argsort()[[0, 1, 2, 0, 1, 2, 0, 1][n]]
        assert row[place] == word and (row != ids[0]).sum() <= 1


def test_brute_force_over_the_vocabulary_finds_the_same_word(tiny_sd):
    """For one position, all words are tried. The next state is the best one that tokenizes back to the same ids."""
    everything, forbidden = 971, [971, 972]
    attack, target = mma(candidates=everything, top=everything, steps=1, compat="intended"), target_of(tiny_sd, "a dog")
    with replayed({"draw.0": torch.arange(everything)}):
        text, loss = attack.search(tiny_sd, target, "b", forbidden, Draws(0))
    readable = [tiny_sd.tokenizer.decode([word]).strip() for word in range(everything)]
    rows = [tiny_sd.token_ids(text) for text in readable]
    same = [row for n, row in enumerate(rows) if row[1:-1] == [n] and readable[n] != "b"]
    losses = 1 - cosine_similarity(pooled(tiny_sd, same), target)
    assert tiny_sd.token_ids(text) == same[int(losses.argmin())] and loss == pytest.approx(float(losses.min()))


@pytest.mark.parametrize("compat", COMPAT)
def test_every_state_is_the_best_of_what_passes_and_the_best_of_all_is_kept(compat, tiny_sd):
    (text, loss), seen = searched(tiny_sd, compat=compat, steps=8)
    states, losses = seen["state"], seen["loss"]
    assert len(states) == 8 and (text, loss) == (states[losses.index(min(losses))], min(losses))
    previous, target = "a b c d", target_of(tiny_sd)
    for passed, state, value in zip(seen["texts"], states, losses, strict=True):
        assert state in passed and previous not in passed
        scores = 1 - cosine_similarity(pooled(tiny_sd, [tiny_sd.token_ids(t) for t in passed]), target)
        assert value == pytest.approx(float(scores.min()))
        previous = state


def test_intended_states_read_back_and_official_ones_need_not(tiny_sd):
    def unstable(compat):
        found = 0
        for seed in range(4):
            _, seen = searched(tiny_sd, seed=seed, compat=compat)
            for tried, texts in zip(seen["candidates"], seen["texts"], strict=True):
                rows = tried.tolist()
                found += sum(tiny_sd.token_ids(text)[1:-1] not in rows for text in texts)
                assert all(len(tiny_sd.token_ids(text)) == tried.shape[1] + 2 for text in texts)
        return found

    assert unstable("intended") == 0 < unstable("official")


def test_banned_words_are_never_put_in(context, tiny_sd, cat):
    forbidden = banned(tiny_sd, cat, "intended")
    words = [w for text in ("cat", "dog", "ship", "the old bird") for w in tiny_sd.token_ids(text)[1:-1]]
    assert set(forbidden) == {*words, 971, 972}
    attack, state = mma(tokens=3), "b c d"
    start = set(tiny_sd.token_ids(state))
    _, seen = searched(tiny_sd, state, forbidden=forbidden, steps=6, compat="intended")
    tried = torch.cat(seen["candidates"])
    assert not set(tried.unique().tolist()) & (set(forbidden) - start)
    for shot in mma(compat="intended").run(context).shots:
        assert not set(tiny_sd.token_ids(shot.prompt.text)[1:-1]) & set(forbidden)
    assert not set(tiny_sd.token_ids(attack.start(tiny_sd, forbidden, Draws(0)))[1:-1]) & set(forbidden)


@pytest.mark.parametrize("tag", ["gcg", "gcg_small", "gcg_home"])
def test_official_words_that_contain_a_banned_one(tag, golden, tiny_sd):
    meta, _, _ = golden(f"mma/{tag}")
    assert containing(tiny_sd, meta["words"]) == meta["banned"]


def test_official_bans_what_contains_a_word_of_the_concept_or_is_a_part_of_one(tiny_sd, cat):
    """Tokens are compared by name, with each word of ``the old bird``; an article bans only itself."""
    concept = replace(cat, name="a Church", synonyms=("the old bird",))
    forbidden, words = set(banned(tiny_sd, concept, "official")), ("church", "the", "old", "bird")
    pieces = {piece for text in ("a church", "the old bird") for piece in tiny_sd.token_ids(text)[1:-1]}
    for name, i in tiny_sd.tokenizer.get_vocab().items():
        letters = name.removesuffix("</w>")
        part = len(letters) > 1 and any(letters in word for word in words)
        assert (i in forbidden) == (part or any(word in name for word in words) or i in pieces or i in (971, 972)), name
    assert forbidden > set(banned(tiny_sd, concept, "intended")) and 2 * len(forbidden) < len(tiny_sd.tokenizer)


def test_official_prompts_hold_no_word_of_the_concept(context, tiny_sd):
    """Candidates contain no word of the concept, as a piece or inside one. ``intended`` does try such pieces."""

    def tried(compat):
        with watched() as seen:
            mma(compat=compat, steps=8, candidates=200, top=900).run(replace(context, shots=context.shots[:1]))
        ids = torch.cat(by_name(seen)["candidates"]).unique().tolist()
        return {
            i for i in ids if i in containing(tiny_sd, ["cat", "dog", "ship", "bird"]) + fragments(tiny_sd, ["bird"])
        }

    assert not tried("official") and tried("intended")


def test_where_nothing_passes_the_state_stays(tiny_sd, monkeypatch):
    attack = mma(steps=3)
    monkeypatch.setattr(type(attack), "passing", lambda *_: [])
    assert attack.search(tiny_sd, target_of(tiny_sd), "b c", [971, 972], Draws(0)) == ("b c", float("inf"))


def test_restarts_differ_and_the_best_serves(context):
    one = replace(context, shots=context.shots[:1])
    states = []
    with traced(lambda **shown: states.append((shown["loss"], shown["state"])) if "state" in shown else None):
        (shot,) = mma(restarts=3, steps=2).run(one).shots
    assert len(states) == 6 and len({state for _, state in states}) > 2
    assert shot.prompt.text == min(states)[1]


def test_a_prompt_gets_one_text_for_all_its_images_and_no_others(context):
    shots = mma().run(context).shots
    texts = [s.prompt.text for s in shots]
    assert len(set(texts[:3])) == len(set(texts[3:])) == 1 and texts[0] != texts[3]
    assert [s.noise_seed for s in shots] == [s.noise_seed for s in context.shots]
    assert mma().run(replace(context, shots=context.shots[3:])).shots == shots[3:]


def test_words_that_do_not_fit_are_refused(context):
    with pytest.raises(overpaint.UserError, match="tokens=76 is too long: the model takes up to 75"):
        mma(tokens=76).run(context)
