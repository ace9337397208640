"""What a measurement reads from its input folders: clusters of images, verdicts and missing values."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from overpaint.attacks.attack import Assault, Painted
from overpaint.attacks.prompt_file import PromptFile, write_prompts
from overpaint.attacks.prompt_lists import attacked
from overpaint.attacks.stored import write_assault
from overpaint.errors import UserError
from overpaint.grid.concepts import Concept
from overpaint.grid.prompt_files import read_prompts
from overpaint.grid.prompts import Prompt, Shot, distinct, shots
from overpaint.images.stages import measure as measuring
from overpaint.images.stages.attack import _judge
from overpaint.images.stages.measure import RECORD_COLUMNS, figures, gather
from overpaint.metrics.attack_success import AttackSuccessUnion, JudgeAgreement
from overpaint.metrics.metric import Figure
from overpaint.metrics.outcomes import own_concept, share
from overpaint.metrics.proportions import TargetProportion
from overpaint.report import statistics
from overpaint.run.store import MANIFEST

CHURCH = Concept("church", label="church", article="a")
LISTED = {"target_proportion": "overpaint.metrics.proportions:TargetProportion"}


def plain_of(texts, seeds=1):
    return shots(distinct([Prompt(text, "target", "church", ("church",)) for text in texts]), seeds)


@pytest.fixture
def measured(tmp_path):
    """``measured(images=[shots or an assault], plain=[…])``: configuration and input folders of the measure stage. Every
    image shows the church."""

    def make(**frames):
        config = {
            "erased": [{"name": "church", "label": "church"}],
            "kinds": {},
            "threshold": 0.5,
            "failure_limit": 0.05,
            "judged_by_itself": False,
        }
        config |= {"shots": {}, "metrics": LISTED, "scope": "", "cell": {"attack": "none", "attack_name": "none"}}
        config["detector"] = {"detector": "eye", "settings": {"version": 3, "assets": {}, "crop": True}}
        inputs = {}
        for name, batches in frames.items():
            config["shots"][name] = []
            for index, batch in enumerate(batches):
                found = batch.shots if isinstance(batch, Assault) else batch
                inputs[f"{name}/{index}"] = folder = tmp_path / f"{name}-{index}-scores"
                folder.mkdir()
                if isinstance(batch, Assault):
                    write_assault(folder, batch)  # the score stage keeps what it says of the shots
                made = {"images": {}, "erasure": {}, "attack": {"images": len(found)}}
                (folder / MANIFEST).write_text(json.dumps({"made": made}))
                scores = pd.DataFrame({"church": 1.0, "failed": False}, index=range(len(found)))
                scores.to_parquet(folder / "scores.parquet")
                described = None if isinstance(batch, Assault) else [shot.as_dict() for shot in found]
                config["shots"][name].append(described)
        return config, inputs

    return make


def same_partition(one, other):
    return (pd.crosstab(one, other) > 0).sum().eq(1).all() and (pd.crosstab(other, one) > 0).sum().eq(1).all()


def test_translations_of_a_prompt_are_told_apart_and_form_one_cluster(measured, tmp_path):
    """Their images start from one noise, also where a task makes only some of them."""
    path = tmp_path / "list.csv"
    path.write_text("id,spanish,french\n1,una iglesia,une église\n2,otra iglesia,autre église\n")
    asked = shots(read_prompts(path, "attacked", "church", ["church"]), 2)
    images = gather(*measured(images=[asked[:3], asked[3:]], original=[asked])).images
    assert len(images) == 8 and not images.duplicated(["prompt_id", "seed"]).any()
    assert images["cluster"].nunique() == 2 and same_partition(images["cluster"], [s.prompt.noise for s in asked])


def test_one_text_under_several_seeds_is_one_cluster(measured, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("prompt,evaluation_seed\n" + "".join(f"a church {t},{s}\n" for t in "abcde" for s in range(20)))
    images = gather(*measured(images=[shots(read_prompts(path, "target", "church", ["church"]), 1)])).images
    assert images["prompt_id"].nunique() == 100 and images["cluster"].nunique() == 5
    assert same_partition(images["cluster"], images["prompt"])
    hits = own_concept(images, 0.5).assign(hit=np.repeat([1.0, 0.0], [40, 60]))
    assert share(hits)[:3] == statistics.proportion(hits["hit"], images["prompt"])[:3]
    assert share(hits).low < statistics.wilson(40, 100)[0]


def test_what_a_list_says_of_several_plain_prompts_is_one_cluster(measured):
    """`implicit` uses its lines in turn, for all prompts and seeds."""
    plain = plain_of(["a church", "the church", "church by the sea"], seeds=4)
    listed = [attacked(shot, ("steeple", "nave")[number % 2], CHURCH, "implicit") for number, shot in enumerate(plain)]
    images = gather(*measured(images=[listed], plain=[plain])).images
    assert images["prompt_id"].nunique() == 3 and same_partition(images["cluster"], images["prompt"])


def test_the_classes_that_the_detector_counts_reach_the_metrics(measured):
    config, inputs = measured(images=[plain_of(["a church"])])
    assert gather(config, inputs).counted == () and gather(config | {"counted": ["a"]}, inputs).counted == ["a"]


def test_at_one_image_a_text_clusters_are_prompts(measured):
    plain = plain_of(["a church", "the church", "church by the sea"])
    found = Assault([attacked(shot, f"x{n} {shot.prompt.text}", CHURCH, "search") for n, shot in enumerate(plain)])
    evidence = gather(*measured(images=[found], plain=[plain], control=[plain]))
    for frame in (evidence.images, evidence.plain, evidence.control):
        assert frame["cluster"].tolist() == frame["prompt_id"].tolist()


def test_what_a_search_makes_of_one_plain_text_is_one_cluster(measured):
    plain = plain_of(["a church", "a church", "the church"], seeds=2)
    found = [attacked(shot, f"x{n} {shot.prompt.text}", CHURCH, "search") for n, shot in enumerate(plain)]
    evidence = gather(*measured(images=[Assault(found)], plain=[plain]))
    texts = pd.Series([shot.prompt.text for shot in plain])
    assert evidence.images["prompt_id"].nunique() == 3
    assert same_partition(evidence.images["cluster"], texts) and same_partition(evidence.plain["cluster"], texts)
    assert set(evidence.images["cluster"]) == set(evidence.plain["cluster"])


def test_an_exported_search_is_replayed_beside_its_plain_prompts(measured, tmp_path, context):
    """Two seeds of two prompts: they are matched by prompt, form one cluster per prompt, and join their plain images."""
    plain = plain_of(["a church", "the church"], seeds=2)
    found = Assault([attacked(shot, f"x{n} {shot.prompt.text}", CHURCH, "search") for n, shot in enumerate(plain)])
    folder = tmp_path / "found"
    folder.mkdir()
    write_assault(folder, found)
    (folder / MANIFEST).write_text(json.dumps({"config": {"attack": "uda", "concept": {"name": "church"}}}))
    write_prompts(tmp_path / "list.csv", [folder])
    replayed = PromptFile(file=str(tmp_path / "list.csv"), most=None).run(context).shots
    assert [shot.noise_seed for shot in replayed] == [shot.noise_seed for shot in plain]
    assert Shot.from_dict(replayed[0].as_dict()) == replayed[0]
    evidence = gather(*measured(images=[replayed], original=[replayed], plain=[plain], plain_original=[plain]))
    assert evidence.images["prompt_id"].tolist() == [shot.prompt.noise for shot in plain]
    assert same_partition(evidence.images["cluster"], evidence.images["prompt_id"])
    figure = AttackSuccessUnion().measure(evidence)
    assert (figure.value, figure.n, figure.why) == (1.0, 2, "")


def test_a_plain_prompts_plain_form_has_no_new_key():
    """The keys of attacks contain the plain prompts as plain values, which must not change."""
    keys = {"text", "role", "concept", "expects", "variant", "id", "noise", "seed", "guidance", "index"}
    assert plain_of(["a church"])[0].as_dict().keys() == keys


def test_a_judge_that_fails_has_said_nothing(measured):
    scores = pd.DataFrame({"church": [0.9, 0.1, np.nan], "failed": [False, False, True]})
    detector = SimpleNamespace(score=lambda images: scores[: len(images)])
    settings = {"detector": "eye", "settings": {}, "threshold": 0.5}
    judge, _ = _judge(
        {"judge": settings}, Concept("church"), SimpleNamespace(detector=lambda name, settings, device: detector), "cpu"
    )
    verdicts = judge([Image.new("RGB", (8, 8))] * 3)
    assert verdicts == [(True, 0.9, True), (False, 0.1, True), (False, 0.0, False)]

    made = [attacked(shot, "x church", CHURCH, "search") for shot in plain_of(["a", "b", "c"])]
    painted = [Painted(shot, Image.new("RGB", (8, 8)), verdict) for shot, verdict in zip(made, verdicts, strict=True)]
    evidence = gather(*measured(images=[Assault(made, painted=painted)], plain=[]))
    assert evidence.images_of("attacked")["verdict"].tolist() == pytest.approx([1.0, 0.0, np.nan], nan_ok=True)
    figure = JudgeAgreement().measure(evidence)
    assert (figure.value, figure.n) == (0.5, 2)


def test_a_record_says_who_judged_at_which_threshold_and_how_it_is_aggregated(measured):
    config, inputs = measured(images=[plain_of(["a church", "the church"])])
    (record,) = figures(config, inputs)
    assert set(record) <= set(RECORD_COLUMNS)
    assert record["detector"].startswith("eye v3 ") and (record["threshold"], record["aggregation"]) == (0.5, "pooled")
    config["detector"]["settings"]["crop"] = False
    (other,) = figures(config, inputs)
    assert other["detector"].startswith("eye v3 ") and other["detector"] != record["detector"]


@pytest.mark.parametrize("compared", [False, True], ids=["the unedited model", "an edited one"])
def test_without_a_detector_a_figure_says_so(measured, tmp_path, compared):
    """Images that were compared with the unedited model's have readings, and no label."""
    config, inputs = measured(images=[plain_of(["a church", "a photo of a church"])])
    config["detector"] = {"detector": None, "settings": None}
    config["metrics"] = LISTED | {"erase_seconds": "overpaint.metrics.cost:EraseSeconds"}
    pd.DataFrame({"failed": [False, False]}).to_parquet(inputs["images/0"] / "scores.parquet")
    if compared:
        inputs["similarity/0"] = folder = tmp_path / "similarity"
        folder.mkdir()
        pd.DataFrame({"ssim": [0.5, 0.6], "psnr": [20.0, 21.0]}).to_parquet(folder / "similarity.parquet")
    target, seconds = figures(config, inputs)
    assert (target["value"], target["failed"], target["why"]) == (None, 0, "no detector: set model.detector")
    assert seconds["why"] == "no erasure was made for these images"


def test_what_is_no_figure_is_not_stored(measured, tmp_path, monkeypatch):
    config, inputs = measured(images=[plain_of(["a church", "the church"])])
    config["cell"] |= dict.fromkeys(("model", "concepts", "kind", "method", "budget"), "a") | {"seed": 0}
    metric = TargetProportion
    monkeypatch.setattr(metric, "measure", lambda self, evidence: 0.5)
    with pytest.raises(
        UserError, match=r"^metrics\.metrics\.target_proportion returned float; measure returns a Figure"
    ):
        measuring.run(SimpleNamespace(config=config), inputs, tmp_path, None)
    monkeypatch.setattr(metric, "measure", lambda self, evidence: Figure("high"))
    with pytest.raises(UserError, match=r"^the figures cannot be stored: records.parquet has values of type"):
        measuring.run(SimpleNamespace(config=config), inputs, tmp_path, None)
