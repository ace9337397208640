"""Any overrides, YAML and CSV: they are taken, or refused by a `UserError` of one line."""

import string

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overpaint.errors import UserError
from overpaint.grid.concepts import load_catalogue
from overpaint.grid.prompt_files import read_prompts

KEYS = ["method", "attack", "seed", "concepts", "concepts.erase", "concepts.anchor", "budget.seeds", "protocol.steps",
        "uce.lamb", "method.lamb", "metrics.metrics.ua", "model.precision", "hydra.searchpath", "~attack", "+x"]  # fmt: skip
WORDS = ["uce", "esd", "none", "church", "null", "true", "1", "-1", "1e9", "nan", "[", "]", "{", "}", ",", "'", '"', "${",
         "}", ":", "=", "range(0,3)", "choice(", ")", "café", " ", "???", "~", "\\", "*"]  # fmt: skip
FUZZ = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def harmless(call):
    """The call succeeds or raises a `UserError` of one line."""
    try:
        call()
    except UserError as error:
        assert str(error).isprintable()


@FUZZ
@given(
    st.lists(
        st.one_of(
            st.builds("{}={}".format, st.sampled_from(KEYS), st.lists(st.sampled_from(WORDS), max_size=5).map("".join)),
            st.text(max_size=20),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_overrides_are_taken_or_refused(taken, overrides):
    harmless(lambda: taken(*overrides))


def yaml_values(keys):
    scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(string.printable, max_size=8))
    return st.recursive(
        scalars,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(keys), inner, max_size=4)),
        max_leaves=12,
    )


CATALOGUE_KEYS = ["concepts", "church", "kind", "synonyms", "translations", "en", "object", "templates", "utility",
                  "prompt", "expects", "unseen", "version", "neighbours", "anchor", "label"]  # fmt: skip


@FUZZ
@given(st.one_of(st.binary(max_size=200), yaml_values(CATALOGUE_KEYS)))
def test_any_catalogue_is_taken_or_refused(taken, tmp_path, value):
    import yaml

    file = tmp_path / "any.yaml"
    file.write_bytes(value if isinstance(value, bytes) else yaml.safe_dump(value).encode())
    load_catalogue.cache_clear()
    harmless(lambda: taken(f"concepts.catalogue={file}"))


@FUZZ
@given(
    st.one_of(
        st.binary(max_size=200), yaml_values([*"ab", "erase", "retain", "anchor", "prompts", "target", "defaults"])
    )
)
def test_any_concept_set_is_taken_or_refused(taken, conf, value):
    import yaml

    searchpath = conf("concepts/any", value if isinstance(value, bytes) else yaml.safe_dump(value))
    harmless(lambda: taken("concepts=any", searchpath))


@FUZZ
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text('prompt,seed\n"\r1.-e\0é', max_size=60).map(lambda t: ("prompt,seed\n" + t).encode()),
    )
)
def test_any_prompt_file_is_taken_or_refused(tmp_path, content):
    file = tmp_path / "any.csv"
    file.write_bytes(content)
    harmless(lambda: read_prompts(file))
