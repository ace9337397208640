"""Ring-A-Bell against a recorded run of the official code, with the same random draws, and against its identities."""

from dataclasses import replace

import pytest
import torch

import overpaint
from official import by_name, distance, watched
from overpaint.attacks.ring_a_bell import concept_vector, contrasts, full_encoding
from overpaint.blocks.draws import Draws
from overpaint.grid.registry import component


def rab(seed=0, **values):
    small = {"tokens": 4, "population": 6, "generations": 3}
    return component("attack", "rab").build(small | values, seed=seed)


def test_official_vector(golden, tiny_sd_float64):
    meta, results, _ = golden("rab/rab_vector")
    assert distance(concept_vector(tiny_sd_float64, meta["pairs"]), results["vec"]) < 1e-5


def test_official_search(golden, tiny_sd_float64):
    meta, results, extra = golden("rab/rab_ga")
    target = full_encoding(tiny_sd_float64, [meta["prompt"]]) + meta["cof"] * extra["vec"]
    assert distance(target, results["target"]) < 1e-5
    attack = rab(
        tokens=meta["length"],
        population=meta["population"],
        generations=meta["generations"],
        mutation_rate=meta["mutate"],
        crossover_rate=meta["cross"],
    )
    records = {"population.0": results["population.0"][:, 1 : 1 + meta["length"]]}
    for kind, name in enumerate(("chance", "choice")):
        values = extra["draw_value"][extra["draw_kind"] == kind].tolist()
        records |= {f"{name}.{n}": value for n, value in enumerate(values)}
    with watched(records) as seen:
        words = attack.search(tiny_sd_float64, target, Draws(0))
    ranked = [values for values in seen if "distances" in values]
    assert len(ranked) == meta["generations"]
    inside = slice(1, 1 + meta["length"])
    for n, values in enumerate(ranked):
        assert torch.equal(values["population"], results[f"population.{n}"][:, inside])
        assert distance(values["distances"], results[f"score.{n}"]) < 1e-5
    for n, values in enumerate(ranked[:-1]):
        assert torch.equal(values["parents"], results[f"parents.{n}"][:, inside])
        assert torch.equal(ranked[n + 1]["population"], results[f"mutated.{n}"][:, inside])
        assert torch.equal(by_name(seen)["crossed"][n], results[f"crossed.{n}"][:, inside])
    assert torch.equal(ranked[-1]["parents"], results["final"][:, inside])
    assert tiny_sd_float64.tokenizer.decode(words).strip() == meta["text"].strip()


def test_equal_sentences_have_no_concept_between_them(tiny_sd):
    assert torch.equal(concept_vector(tiny_sd, [("a dog", "a dog"), ("a ship", "a ship")]), torch.zeros(77, 48))


def test_pairs_differ_in_the_concept_alone(context, cat):
    assert contrasts(cat, context.catalogue) == [
        ("a photo of a cat", "a photo of"),
        ("a picture of a cat", "a picture of"),
    ]
    assert contrasts(replace(cat, anchor="owl"), context.catalogue)[0][1] == "a photo of an owl"
    assert contrasts(replace(cat, anchor="owl", article=""), context.catalogue)[0] == (
        "a photo of cat",
        "a photo of owl",
    )


def test_the_prompts_own_words_are_the_target_without_a_step_along_the_vector(tiny_sd):
    own = tiny_sd.token_ids("a photo of a dog")[1:-1]
    start = torch.tensor(
        [own, *torch.randint(1, 900, (3, len(own)), generator=torch.Generator().manual_seed(0)).tolist()]
    )
    attack = rab(tokens=len(own), population=4, generations=1)
    with watched({"population.0": start}) as seen:
        assert attack.search(tiny_sd, full_encoding(tiny_sd, ["a photo of a dog"]), Draws(0)) == own
    assert seen[0]["distances"][0] < 1e-6 < seen[0]["distances"][1:].min()


def traced_search(model, draws, **values):
    target = full_encoding(model, ["a dog"])
    with watched() as seen:
        words = rab(**values).search(model, target, draws)
    return words, seen


def test_a_generation_is_from_half_to_one_and_a_half_as_large_and_never_holds_special_words(tiny_sd):
    for rate, expected in ((0, 3), (1, 9)):
        _, seen = traced_search(tiny_sd, Draws(0), crossover_rate=rate, mutation_rate=1, generations=8)
        populations = by_name(seen)["population"]
        assert [len(p) for p in populations] == [6] + 7 * [expected]
        ids = torch.cat(populations)
        assert ids.shape[1] == 4 and not set(ids.unique().tolist()) & {0, *tiny_sd.tokenizer.all_special_ids}


def test_with_elitism_the_best_never_gets_worse(tiny_sd):
    def best(elitism):
        _, seen = traced_search(tiny_sd, Draws(1), elitism=elitism, mutation_rate=1, generations=12)
        return [float(d.min()) for d in by_name(seen)["distances"]]

    losses = best(True)
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    assert best(False) != sorted(best(False), reverse=True)


def test_the_last_generations_best_is_returned(tiny_sd):
    words, seen = traced_search(tiny_sd, Draws(2), generations=5)
    last = [values for values in seen if "distances" in values][-1]
    assert words == last["population"][int(last["distances"].argmin())].tolist()


def test_the_name_can_be_forbidden(tiny_sd):
    everything = list(range(1, 971))
    (dog,) = tiny_sd.token_ids("dog")[1:-1]
    allowed = [word for word in everything if word != dog]
    words = rab(tokens=1, population=4, generations=60, elitism=True).search(
        tiny_sd, full_encoding(tiny_sd, ["dog"]), Draws(0), forbidden=allowed[:-1]
    )
    assert words == [dog]
    words = rab(tokens=1, population=4, generations=60, elitism=True).search(
        tiny_sd, full_encoding(tiny_sd, ["dog"]), Draws(0), forbidden=[dog]
    )
    assert words != [dog]


def test_a_prompt_gets_one_text_for_all_its_images_and_no_others(context):
    shots = rab().run(context).shots
    texts = [s.prompt.text for s in shots]
    assert len(set(texts[:3])) == len(set(texts[3:])) == 1 and texts[0] != texts[3]
    assert [s.noise_seed for s in shots] == [s.noise_seed for s in context.shots]
    assert rab().run(replace(context, shots=context.shots[3:])).shots == shots[3:]


def test_the_ledger_counts_every_text(context):
    ledger = rab(generations=1, population=5).run(context).ledger
    assert ledger.text_forwards == 2 * 2 + 2 * (1 + 5)  # two pairs of sentences; a target and five individuals a prompt
    assert ledger.forwards == ledger.backwards == 0


def test_words_that_do_not_fit_are_refused(context):
    with pytest.raises(overpaint.UserError, match="tokens=76 is too long: the model takes up to 75"):
        rab(tokens=76).run(context)
    with pytest.raises(overpaint.UserError, match="population takes"):
        rab(population=1)
