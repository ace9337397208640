"""Prompt files in the formats that papers publish: how each is read, and how its rows become prompts of a role."""

import codecs

import pytest

from overpaint.errors import UserError
from overpaint.grid.cells import cell_from
from overpaint.grid.composition import compose_cells
from overpaint.grid.prompt_files import PromptList, read_prompts, read_rows
from overpaint.grid.prompts import Prompt, Shot, distinct
from overpaint.grid.read_once import reading_once
from overpaint.grid.roles import attack_list, role, shortfalls

I2P = (
    ",prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,sd_safety_percentage,prompt_toxicity,"
    "lexica_url,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height,sd_model,case_number\n"
)
#: Name -> (the file, what is read of its first row). The columns are those of the published files, the prompts are our own.
FORMATS = {
    "I2P": (
        I2P + '0,"a dim room,\nat night","violence, self-harm",1,50.0,0.0,50,20,0.1,url,4080709695,7,512,384,sd,3\n',
        {"text": "a dim room,\nat night", "categories": ("violence", "self-harm"), "seed": 4080709695, "guidance": 7.0,
         "size": (512, 384), "id": "3"},
    ),
    "I2P on the hub": (
        "prompt,categories,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height\na room,hate,7,12.5,512,512\n",
        {"seed": 7, "guidance": 12.5, "size": (512, 512)},
    ),
    "UnlearnDiffAtk": (
        "case_number,prompt,evaluation_seed,evaluation_guidance\n0,an old house,69922,7.5\n",
        {"text": "an old house", "seed": 69922, "guidance": 7.5, "about": ""},
    ),
    "UnlearnDiffAtk's styles": (
        "Unnamed: 0,case_number,prompt,evaluation_seed,artist,evaluation_guidance\n0,5,a field,2219,An Artist,7.5\n",
        {"about": "An Artist", "id": "5"},
    ),
    "HUB's target prompts": ("A field in the sun, calm.\n\nA second prompt\n", {"text": "A field in the sun, calm."}),
    "HUB's quoted prompts": ('"A field in the sun, calm."\n', {"text": "A field in the sun, calm."}),
    "HUB's translations": (
        'Original,Spanish,French,German,Italian,Portuguese,Index\n"A house, red",a,b,c,d,e,0\n',
        {"text": "A house, red", "variant": "en"},
    ),
    "HUB's nouns": ("noun,similarity\nmeadow,0.776\n", {"text": "", "about": "meadow"}),
    "COCO-30k": ("case_number,source,prompt,evaluation_seed,coco_id\n0,coco-30k,A cup.,41337,9\n", {"seed": 41337, "id": "0"}),
    "HUB's COCO": ("image_id,text\n42,A cup on a table\n", {"text": "A cup on a table", "id": "42"}),
    "UnlearnCanvas": (
        "prompt,object,style,seed\nA Dogs image in Van Gogh style.,Dogs,Van Gogh,188\n",
        {"about": "Dogs", "expects": ("Dogs", "Van Gogh"), "seed": 188},
    ),
    "Imagenette of UCE": ("case_number,prompt,class,evaluation_seed\r\n0,fish,tench,1174\r\n", {"about": "tench", "seed": 1174}),
    "Imagenette of P4D": (
        ",case_number,prompt,evaluation_seed,classes,evaluation_guidance\n0,90,a horn,1562,french horn,7.5\n",
        {"about": "french horn", "id": "90"},
    ),
    "MACE": (",type,prompt,evaluation_seed\n0,erased,A portrait of A Person,1\n", {"seed": 1, "about": ""}),
    "MACE's artists": (",type,artist,prompt,evaluation_seed\n0,1,An Artist,Art by An Artist,1\n", {"about": "An Artist"}),
    "Ring-A-Bell": ('prompt,case_number,evaluation_seed\n"odd ""word"" *, x",0,11\n', {"text": 'odd "word" *, x', "seed": 11}),
    "P4D": (I2P + "9,found words,sexual,0,40.0,10.0,40,100,0.1,u,1664501552,17,512,512,sd,1\n", {"guidance": 17.0, "id": "1"}),
    "MMA": (
        "target_prompt,adv_prompt,sanitized_adv_prompt,success_against_sanitization_defense,clean_prompt\nplain,found,x,1,tame\n",
        {"text": "found"},
    ),
    "Six-CD": ("case_number,evaluation_seed,prompt\n0,1508,a statue\n", {"text": "a statue", "seed": 1508}),
    "Six-CD's names": ("id,concept\n0,a_person\n", {"text": "", "about": "a_person", "id": "0"}),
    "RECE's pairs": ("sensitive prompt,normal prompt\r\nfirst,second\r\n", {"text": "first"}),
    "ICEB": ("id,text,concept,expects\n1,a dog in a hat,dog,hat;chair\n", {"about": "dog", "expects": ("hat", "chair")}),
    "a spreadsheet's": (codecs.BOM_UTF8.decode() + "Prompt ,SEED\r\n église ,3\r\n", {"text": "église", "seed": 3}),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_published_prompt_files_are_read(tmp_path, name):
    text, expected = FORMATS[name]
    (tmp_path / "list.csv").write_text(text, encoding="utf-8", newline="")
    first, *others = read_rows(tmp_path / "list.csv")
    assert {key: getattr(first, key) for key in expected} == expected
    assert len(others) == {"HUB's target prompts": 1, "HUB's translations": 5}.get(name, 0)


def test_translations_of_a_prompt_start_from_the_same_noise(tmp_path):
    (tmp_path / "list.csv").write_text(
        "Original,Spanish,Index\na house,una casa,0\na tree,un árbol,1\n", encoding="utf-8"
    )
    en, es, other, _ = read_prompts(tmp_path / "list.csv")
    assert (en.variant, es.variant) == ("en", "es") and en.id != es.id
    assert Shot(en, 0).noise_seed == Shot(es, 0).noise_seed != Shot(other, 0).noise_seed


def test_translations_have_the_other_columns_of_their_line(tmp_path):
    (tmp_path / "list.csv").write_text(
        "concept,evaluation_seed,evaluation_guidance,english,spanish\nchurch,7,3.5,a church,una iglesia\n"
        "car,8,3.5,a car,un coche\n",
        encoding="utf-8",
    )
    rows = list(read_rows(tmp_path / "list.csv"))
    told = [(row.text, row.variant, row.about, row.seed, row.guidance) for row in rows]
    assert told == [
        ("a church", "en", "church", 7, 3.5), ("una iglesia", "es", "church", 7, 3.5),
        ("a car", "en", "car", 8, 3.5), ("un coche", "es", "car", 8, 3.5),
    ]  # fmt: skip


REFUSED = {
    "latin-1": ("prompt\ncafé\n".encode("latin-1"), "line 2 is not in UTF-8; save it as UTF-8"),
    "UTF-16": ("prompt\na house\n".encode("utf-16-le"), "NUL character"),
    "two prompt columns": (b"prompt,prompt\na,b\n", "the column 'prompt' more than once, with different values"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
    "no prompt": (b"colour,size\nred,2\n", "no 'prompt' column (its columns: colour, size)"),
    "semicolons": (b"prompt;seed\na;2\n", "(its columns: prompt;seed); separate columns by commas"),
    "short lines": (
        b"a house\na tree\n",
        "(its columns: a house); a list with one prompt a line needs a first line 'prompt'",
    ),
    "a width alone": (b"prompt,width\na,512\n", "width without height: give both, or neither"),
    "a height alone": (b"prompt,width,height\na,,512\n", "height without width: give both, or neither"),
    "a width of 0": (b"prompt,width,height\na,0,512\n", "width takes a number of pixels from 8 to 8192, got 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_read_is_told_in_a_sentence(tmp_path, name):
    content, said = REFUSED[name]
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_rows(tmp_path / "list.csv")
    assert said in str(error.value) and "list.csv" in str(error.value) and str(error.value).isprintable()


def test_repeated_columns_that_agree_or_that_nothing_reads_are_no_problem(tmp_path):
    (tmp_path / "list.csv").write_text("prompt,x,x,prompt\na house,1,2,a house\n")
    assert [row.text for row in read_rows(tmp_path / "list.csv")] == ["a house"]


def test_a_stray_nul_among_found_words_is_dropped(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"several words of a prompt\n" * 100 + b"odd\0 words of a search\n")
    assert read_rows(tmp_path / "list.csv")[-1].text == "odd words of a search"


def test_rows_are_selected_by_the_values_of_columns(tmp_path):
    rows = ['one,"sexual, hate",60', "two,hate,40", "three,sexual,50.5", "four,asexual,"]
    (tmp_path / "list.csv").write_text("\n".join(["prompt,categories,nudity_percentage", *rows]) + "\n")

    def chosen(**given):
        return [row.text for row in PromptList.of({"file": str(tmp_path / "list.csv"), **given}, "here").read()]

    assert chosen(where={"categories": "Sexual"}) == ["one", "three"]
    assert chosen(where={"nudity_percentage": "> 50"}) == ["one", "three"]
    assert chosen(where={"nudity_percentage": "<= 50.5", "categories": "sexual"}) == ["three"]
    assert chosen(where={"nudity_percentage": 40}) == ["two"]
    assert chosen(first=1, where={"categories": "hate"}) == ["one"]
    with pytest.raises(UserError, match=r"unknown column 'category'.*did you mean 'categories'"):
        chosen(where={"category": "hate"})
    with pytest.raises(UserError, match=r"unknown key 'fil'|needs a file"):
        PromptList.of({"fil": "x.csv"}, "concepts.prompts.target")


def cell(*overrides, attack="none"):
    (composed,) = compose_cells(["model=sd14", "method=none", f"attack={attack}", *overrides])
    return cell_from(composed.config, composed.explicit)


def prompts(name, found):
    return role(name).prompts(found.concepts, found.budget)


@pytest.fixture
def lists(tmp_path, monkeypatch):
    """``lists(name=text)``: files ``name.csv`` in the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8")

    return write


CLASSES = (
    "prompt,class,evaluation_seed\na tench,tench,1\na big tench,Tench,2\na church,church,3\na golf ball,golf_ball,4\n"
)


def test_one_list_serves_the_target_and_its_neighbours(lists):
    lists(p=CLASSES)
    found = cell(
        "concepts=imagenette", "concepts.erase=[tench]", "concepts.prompts.target=p.csv", "concepts.prompts.near=p.csv"
    )
    assert [(p.text, p.concept, p.expects, p.seed) for p in prompts("target", found)] == [
        ("a tench", "tench", ("tench",), 1), ("a big tench", "tench", ("tench",), 2)
    ]  # fmt: skip
    assert [(p.concept, p.role) for p in prompts("near", found)] == [("church", "near"), ("golf ball", "near")]
    said = shortfalls(found)
    assert "target prompts: 2 of 4 rows of p.csv are about a concept to erase" in said
    with pytest.raises(UserError, match=r"no row of p.csv is about parachute.*it is about tench"):
        prompts("target", cell("concepts=imagenette", "concepts.erase=[parachute]", "concepts.prompts.target=p.csv"))


def test_concept_sets_share_the_prompts_that_they_have_in_common(lists):
    """A grid over many concepts holds one list of its captions, and one of its shots, whatever it erases."""
    lists(p=CLASSES, captions="prompt\na cup\na dog\na bus\n")
    given = ["concepts=imagenette", "concepts.prompts={target: p.csv, near: null, utility: captions.csv}"]
    with reading_once():
        one, other = (
            cell(*given, f"concepts.erase=[{name}]", "budget.utility_prompts=2") for name in ("tench", "church")
        )
        assert prompts("utility", one) is not prompts("target", one)
        shared, again = (role("utility").shots(found.concepts, found.budget) for found in (one, other))
        assert shared is again and [shot.prompt.text for shot in shared] == ["a cup", "a dog"]
        targets, others = (role("target").shots(found.concepts, found.budget) for found in (one, other))
        assert [shot.prompt.text for shot in targets] == ["a tench", "a big tench"]
        assert [shot.prompt.text for shot in others] == ["a church"]


def test_a_list_without_a_column_is_about_the_only_concept_or_the_one_that_it_names(lists):
    lists(
        one="prompt\nfirst\nsecond\n",
        names="type,prompt\nerased,A portrait of Adam Driver\nothers,A sketch of amy poehler\n",
    )
    found = cell("concepts=nudity", "concepts.prompts={target: one.csv, utility: null}")
    assert [p.concept for p in prompts("target", found)] == ["exposed", "exposed"]
    found = cell("concepts=celebrity_5", "concepts.prompts={target: names.csv, near: names.csv, utility: null}")
    assert [p.concept for p in prompts("target", found)] == ["Adam Driver"]
    assert [p.concept for p in prompts("near", found)] == ["Amy Poehler"]


def test_a_list_of_one_concept_can_name_others_and_words_of_one_label_are_one_thing(lists):
    lists(
        people="prompt\nA portrait of Melania Trump\nA sketch of Amy Poehler\nsomebody\n",
        i2p="prompt,categories\none,sexual\ntwo,hate\n", all="prompt,class\na,tench\n",
    )  # fmt: skip
    found = cell("concepts=celebrity_1", "concepts.prompts={target: people.csv, near: people.csv, utility: null}")
    assert [p.text for p in prompts("target", found)] == ["A portrait of Melania Trump", "somebody"]
    assert [p.concept for p in prompts("near", found)] == ["Amy Poehler"]
    words = cell("concepts=nudity_words", "concepts.prompts={target: i2p.csv, utility: null}")
    assert [p.concept for p in prompts("target", words)] == ["exposed", "exposed"]
    every = cell("concepts=imagenette", "concepts.prompts={target: all.csv, near: all.csv, utility: null}")
    assert prompts("near", every) == []


def test_categories_tell_the_concept_only_if_it_is_among_them(lists):
    lists(p='prompt,categories\none,"hate, sexual"\ntwo,shocking\nthree,sexual\n')
    nudity = cell("concepts=nudity", "concepts.prompts={target: p.csv, utility: null}")
    assert [p.text for p in prompts("target", nudity)] == ["one", "two", "three"]
    sexual = cell("concepts=inline", "concepts.erase=[sexual]", "concepts.kind=unsafe", "concepts.prompts.target=p.csv")
    assert [(p.text, p.concept) for p in prompts("target", sexual)] == [("one", "sexual"), ("three", "sexual")]


def test_columns_label_the_rows_of_every_role(lists):
    lists(
        near="prompt,concept\na meadow,meadow\n", grid="prompt,object,style\nx,Dogs,Van Gogh\n",
        beside="prompt,concept,expects\na dog in a hat,dog,hat;chair\n", plain="prompt,expects\na cup,cup\n",
    )  # fmt: skip
    files = "concepts.prompts={near: near.csv, grid: grid.csv, in_prompt: beside.csv, utility: plain.csv}"
    found = cell("concepts=inline", "concepts.erase=[dog]", files)
    labels = {
        name: [(p.concept, p.expects) for p in prompts(name, found)]
        for name in ("near", "grid", "in_prompt", "utility")
    }
    assert labels == {
        "near": [("meadow", ("meadow",))], "grid": [("Dogs", ("Dogs", "Van Gogh"))],
        "in_prompt": [("dog", ("hat", "chair", "dog"))], "utility": [("", ("cup",))],
    }  # fmt: skip


def test_rows_that_no_detector_can_count_are_told(lists):
    lists(p="prompt\nsome words\nothers\n")
    found = cell("concepts=inline", "concepts.erase=[dog]", "concepts.prompts.near=p.csv")
    assert [p.concept for p in prompts("near", found)] == ["", ""]
    assert any("near prompts: 2 rows of p.csv do not tell what they ask for" in said for said in shortfalls(found))


def test_rows_that_repeat_a_prompt_are_told(lists):
    lists(p="prompt,concept,seed\na dog,dog,\na dog,dog,\na dog,dog,3\na dog,dog,4\na cat,cat,\n")
    found = cell("concepts=inline", "concepts.erase=[dog]", "concepts.prompts.target=p.csv")
    said = [line for line in shortfalls(found) if "repeat" in line]
    assert len(said) == 1 and said[0].startswith("target prompts: 1 row of p.csv repeats an earlier prompt;")


def test_a_list_without_a_column_of_prompts_is_told(lists):
    lists(p="promt,concept\na dog on a hill,dog\n", q="prompt,concept\na dog on a hill,dog\n")
    given = ["concepts=inline", "concepts.erase=[dog]"]
    said = {name: shortfalls(cell(*given, f"concepts.prompts.target={name}.csv")) for name in "pq"}
    assert any("target prompts: p.csv has no column of prompts; its names fill the templates" in s for s in said["p"])
    assert not any("has no column of prompts" in s for s in said["q"])


def test_a_list_of_names_is_put_into_templates(lists):
    lists(p="noun,similarity\nmeadow,0.7\nsea,0.6\n")
    given = ["concepts=inline", "concepts.erase=[dog]", "concepts.prompts.near=p.csv"]
    assert [(p.text, p.concept) for p in prompts("near", cell(*given, "budget.near_prompts=1"))] == [
        ("a photo of meadow", "meadow"), ("a photo of sea", "sea")
    ]  # fmt: skip


def test_a_cut_list_is_told_and_null_uses_all(lists):
    lists(p="prompt,evaluation_seed\n" + "".join(f"prompt {n},{n}\n" for n in range(931)))
    given = ["concepts=nudity", "concepts.prompts={target: p.csv, utility: null}"]
    cut, whole = cell(*given), cell(*given, "budget.target_prompts=null")
    assert len(prompts("target", cut)) == 24 and len(prompts("target", whole)) == 931
    told = "target prompts: 24 of 931 of p.csv are used (budget.target_prompts=24 for each concept; null uses all)"
    assert told in shortfalls(cut)
    assert not any("p.csv" in said for said in shortfalls(whole))
    assert prompts("target", whole)[:24] == prompts("target", cut)


def test_a_cut_list_keeps_rows_of_every_concept(lists):
    lists(p="prompt,class\n" + "".join(f"{name} {n},{name}\n" for name in ("tench", "church") for n in range(9)))
    found = cell(
        "concepts=imagenette",
        "concepts.erase=[tench, church]",
        "budget.target_prompts=2",
        "concepts.prompts.target=p.csv",
    )
    assert [p.text for p in prompts("target", found)] == ["tench 0", "tench 1", "church 0", "church 1"]


def test_a_concept_needs_no_catalogue_to_be_counted():
    named = cell("concepts=inline", "concepts.erase=[nudity]", "concepts.labels={nudity: exposed}")
    assert named.concepts.request.erase[0].label == "exposed"
    assert {p.concept for p in prompts("target", named)} == {"exposed"}
    assert cell("concepts=inline", "concepts.erase=[dog]").concepts.request.erase[0].label == "dog"
    with pytest.raises(UserError, match=r"unknown concept 'nudty' in concepts.labels.*did you mean 'nudity'"):
        cell("concepts=inline", "concepts.erase=[nudity]", "concepts.labels={nudty: exposed}")


def test_a_file_is_named_after_the_concept(lists):
    lists(**{"Van Gogh": "A field of wheat in the sun\n"})
    found = cell("concepts=inline", "concepts.erase=[Van Gogh]", "concepts.prompts.target='{concept}.csv'")
    assert [p.text for p in prompts("target", found)] == ["A field of wheat in the sun"]


@pytest.mark.parametrize("name", ["concepts.prompts.targets=x.csv", "concepts.prompts.target={where: {a: b}}"])
def test_a_wrong_list_is_refused(lists, name):
    with pytest.raises(UserError, match=r"unknown key 'targets'|concepts.prompts.target needs a file"):
        shortfalls(cell("concepts=inline", "concepts.erase=[dog]", name))


def test_size_and_selection_are_part_of_a_cells_identity(lists):
    lists(p="prompt,categories,width,height\na,hate,512,384\nb,sexual,512,512\n")
    base = ["concepts=nudity", "concepts.prompts.target={file: p.csv, where: {categories: hate}}"]
    one, other = cell(*base), cell(*base[:1], "concepts.prompts.target={file: p.csv, where: {categories: sexual}}")
    assert one.identity != other.identity
    inner = cell(*base[:1], "concepts.prompts.target.file=p.csv", "concepts.prompts.target.where={categories: hate}")
    assert [p.text for p in prompts("target", inner)] == ["a"]
    (prompt,) = prompts("target", one)
    assert prompt.size == (512, 384) and Shot.from_dict(Shot(prompt, 0).as_dict()) == Shot(prompt, 0)


def test_a_concept_set_has_lists_for_attacks(lists):
    lists(p="Original,Spanish,French,Index\nx,una casa,une maison,0\ny,un perro,un chien,1\n")
    given = ["concepts=inline", "concepts.erase=[house]", "concepts.prompts.multilingual=p.csv"]
    found = cell(*given, attack="multilingual")
    made = attack_list("multilingual", found.concepts, found.budget)
    assert [(s.prompt.text, s.prompt.variant, s.prompt.role) for s in made] == [
        ("una casa", "es", "attacked"), ("une maison", "fr", "attacked"),
        ("un perro", "es", "attacked"), ("un chien", "fr", "attacked"),
    ]  # fmt: skip
    assert attack_list("paraphrase", found.concepts, found.budget) is None
    cut = "attack=multilingual: 3 of 4 prompts of p.csv are used (budget.target_prompts=3; null uses all)"
    said = shortfalls(cell(*given, "budget.target_prompts=3", attack="multilingual"))
    assert cut in said and not any("are about" in sentence for sentence in said), "the originals are no translations"


def test_a_list_for_an_attack_tells_how_much_of_it_is_about_the_attacked_concept(lists):
    lists(p="prompt,class\na pup,dog\na hound,dog\na kitten,cat\n")
    found = cell(
        "concepts=inline", "concepts.erase=[dog,cat]", "concepts.prompts.paraphrase=p.csv", attack="paraphrase"
    )
    made = attack_list("paraphrase", found.concepts, found.budget)
    assert [s.prompt.text for s in made] == ["a pup", "a hound"]
    assert "attack=paraphrase: 2 of 3 prompts of p.csv are about dog" in shortfalls(found)


def test_a_list_that_is_about_nothing_erased_is_named_by_its_key(lists):
    lists(p="prompt,class\na kitten,cat\n")
    for key, attack in (("target", "none"), ("synonym", "synonym")):
        with pytest.raises(
            UserError, match=rf"concepts.prompts.{key}: no row of p.csv is about dog \(it is about cat\)"
        ):
            given = ["concepts=inline", "concepts.erase=[dog]", f"concepts.prompts.{key}=p.csv"]
            shortfalls(cell(*given, attack=attack))


def test_ids_are_numbered_past_those_of_the_list():
    ids = ["a", "a", "a-2", "b-2", "b", "b"]
    found = distinct(Prompt("text", "target", id=name) for name in ids)
    assert [p.id for p in found] == ["a", "a-2", "a-2-2", "b-2", "b", "b-3"]
    assert len({p.noise for p in found}) == len(found)
    assert [p.id for p in distinct(found)] == [p.id for p in found]


@pytest.mark.parametrize("name", ["prompts", "./prompts", "{folder}/prompts"])
def test_a_list_needs_no_suffix_and_is_identified_by_its_content(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    base = ["concepts=church", f"concepts.prompts.target={name.format(folder=tmp_path)}"]
    identities = []
    for text in ("a church\n", "a chapel\n"):
        (tmp_path / "prompts").write_text(f"prompt\n{text}")
        clear = cell(*base)
        assert [p.text for p in prompts("target", clear)] == [text.strip()]
        identities.append(clear.identity)
    assert len({*identities}) == 2


def test_a_list_that_a_cell_does_not_use_is_neither_needed_nor_in_its_identity(lists):
    lists(p="prompt\na dog\n")
    given = ["concepts=inline", "concepts.erase=[dog]", "concepts.prompts.target=p.csv"]
    idle = "concepts.prompts={near: missing.csv, multilingual: missing.csv, target: p.csv}"
    plain = cell(*given, "budget.near_prompts=0")
    assert cell(*given[:2], idle, "budget.near_prompts=0").identity == plain.identity
    assert set(cell(*given, idle, "budget.near_prompts=8").concepts.lists) == {"target", "near"}
    assert set(cell(*given, idle, "budget.near_prompts=0", attack="multilingual").concepts.lists) == {
        "target",
        "multilingual",
    }
    unused = "concepts.prompts.near is not used: budget.near_prompts=0"
    assert unused in shortfalls(cell(*given, "concepts.prompts.near=missing.csv", "budget.near_prompts=0"))
    assert unused not in shortfalls(plain)
    with pytest.raises(UserError, match=r"concepts\.prompts\.near needs a file"):
        cell(*given, "concepts.prompts.near={first: 3}", "budget.near_prompts=0")


def test_the_rows_of_absent_lists_are_counted(monkeypatch, tmp_path):
    """HUB names its lists after the concept in a folder for each role; its pinpoint prompts are ten for each of 100 names."""
    monkeypatch.setenv("OVERPAINT_ASSETS", str(tmp_path / "no assets"))
    given = ["concepts=hub33", "concepts.erase=[Nudity]", "budget=paper", "budget.target_prompts=null"]
    found = cell(*given, "budget.near_prompts=10", attack="multilingual")
    targets, near = prompts("target", found), prompts("near", found)
    assert (len(targets), len(near), len({prompt.concept for prompt in near})) == (10_000, 1_000, 100)
    translated = attack_list("multilingual", found.concepts, found.budget)
    assert len(translated) == 5_000
    assert not {shot.prompt.text for shot in translated} & {prompt.text for prompt in [*targets, *near]}
