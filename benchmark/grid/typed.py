"""Values checked against the field types of a class, by pydantic. Errors are reported in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict

from overpaint.errors import UserError, nearest, unknown

#: Strict: 10 is a float, but True is not an int and "10" is not a number. NaN and infinity are not numbers either.
RULES = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid", arbitrary_types_allowed=True)

#: The largest single-precision number, rounded down.
LARGEST = 3.4e38

#: Types as error messages write them, one value and several.
WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
    NoneType: "null",
}
MANY = WORDS | {int: "whole numbers", float: "finite numbers", str: "texts", list: "lists", dict: "mappings"}

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]


def construct(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """``cls(**values)`` with every value checked against the type of its field.

    Error messages start with ``where``: ``budget`` or ``method=uce``.

    Raises:
        UserError: for an unknown key, a missing key or a value of the wrong type.
    """
    return created(cls, checked(cls, values, where), where)


def created(cls: type, settled: Mapping[str, Any], where: str) -> Any:
    """``cls(**settled)`` for values that are already checked. A `UserError` of the class itself gets ``where`` in front."""
    try:
        return cls(**settled)
    except UserError as error:
        raise (error if where in str(error) else UserError(f"{where}: {error}")) from None


def checked(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values converted to the field types of a dataclass or TypedDict: 10 becomes 10.0 for a float."""
    hints = _hints(cls)
    try:
        found = _adapter(cls).validate_python(dict(values))
    except ValidationError as error:
        errors = error.errors(include_url=False)  # a misspelt key comes before the missing one that it stands for
        first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
        raise _refusal(first, values, hints, where) from None
    for key, value in found.items():
        if isinstance(value, float) and abs(value) > LARGEST:
            raise UserError(f"{named(where, key)} takes a number up to {LARGEST:g}, got {value!r}")
    return found


def check_type(value: Any, hint: Any, where: str) -> None:
    """Raise a `UserError` with the key, the value and what is allowed if ``value`` does not have the type ``hint``."""
    try:
        TypeAdapter(hint, config=RULES).validate_python(value)
    except ValidationError:
        raise _unfit(value, hint, where) from None


@cache
def _hints(cls: type) -> dict[str, Any]:
    """Types of a dataclass's fields or of a `TypedDict`'s keys."""
    try:
        hints = get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise UserError(
            f"the types of {cls.__name__}'s fields cannot be read: {error}; import it outside of TYPE_CHECKING"
        ) from None
    names = [f.name for f in fields(cls) if f.init] if hasattr(cls, "__dataclass_fields__") else hints
    return {name: hints[name] for name in names}


@cache
def _adapter(cls: type) -> TypeAdapter:
    """A pydantic type adapter for the class's values. Dataclasses keep their own defaults."""
    optional = {f.name for f in getattr(cls, "__dataclass_fields__", {}).values() if _has_default(f)}
    total = getattr(cls, "__total__", True)
    keys = {n: NotRequired[hint] if n in optional or not total else hint for n, hint in _hints(cls).items()}
    shape = TypedDict(cls.__name__, keys)  # type: ignore[misc]  # made at run time
    return TypeAdapter(with_config(RULES)(shape))


def _has_default(f) -> bool:
    return f.default is not MISSING or f.default_factory is not MISSING


def _refusal(error: ErrorDetails, values: Mapping, hints: Mapping[str, Any], where: str) -> UserError:
    """Pydantic's error as a sentence."""
    key = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        shared = ("seed",) if where.startswith(("method=", "attack=")) else ()  # set by seed=, for all of them
        allowed = [name for name in hints if name not in shared]
        return unknown("hyper-parameter" if "=" in where else "key", key, allowed, where)
    if error["type"] == "missing":
        return UserError(f"{where}: no value for {key}")
    value, hint, place = values[key], hints[key], named(where, key)
    wrong_key = error["loc"][-1] == "[key]"
    # into mappings, whose keys a message names too; other parts are members of unions
    for n, part in enumerate(error["loc"][1:], start=2):
        found = next((get_args(o) for o in _options(hint) if get_origin(o) is dict and isinstance(part, str)), None)
        if found is None or not isinstance(value, dict) or part not in value:
            continue
        keys, inner = found
        if wrong_key and n == len(error["loc"]) - 1 and get_origin(keys) is Literal:
            return unknown("key", str(part), get_args(keys), place)
        value, hint, place = value[part], inner, f"{place}.{part}"
    return _unfit(value, hint, place)


def named(where: str, key: str) -> str:
    """A key as error messages write it: ``budget.seeds``, or ``method=uce: lamb``."""
    return f"{where}: {key}" if "=" in where or " " in where else f"{where}.{key}"


def _unfit(value: Any, hint: Any, where: str) -> UserError:
    """The error for a value of the wrong type: what is allowed, what was given, and the nearest allowed word."""
    words = [word for option in _options(hint) if get_origin(option) is Literal for word in get_args(option)]
    others = [option for option in _options(hint) if get_origin(option) is not Literal and option is not NoneType]
    if words and isinstance(value, str) and (not others or nearest(value, map(str, words))):
        return unknown("value", value, map(str, words), where)
    return UserError(f"{where} takes {' or '.join(map(said, _options(hint)))}, got {shown(value)}")


def shown(value: Any) -> str:
    """A value for an error message: as in YAML, on one line, truncated to 200 characters."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return _truncated(repr(value))


def bare(text: str) -> str:
    """A text for an error message, like `shown` but without quotes."""
    return _truncated(repr(text)[1:-1])


def _truncated(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]} …"


def _options(hint: Any) -> Iterable[Any]:
    """The members of a union, or the type alone."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def said(hint: Any) -> str:
    """A type as error messages write it: ``true or false``, ``a whole number from 1 up``, ``a list of texts``."""
    if get_origin(hint) is Annotated:
        kind, *limits = get_args(hint)
        bounds = {type(limit).__name__: limit for field in limits for limit in getattr(field, "metadata", ())}
        name = "a number" if kind is float else said(kind)
        high = bounds.get("Le")
        if "Gt" in bounds:
            return f"{name} above {bounds['Gt'].gt}" + (f" and up to {high.le}" if high else "")
        return f"{name} from {bounds['Ge'].ge} " + (f"to {high.le}" if high else "up")
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) in (list, dict):
        inner = get_args(hint)[-1]  # of a mapping: the values; the keys are texts
        inner = get_args(inner)[0] if get_origin(inner) is Annotated else inner
        many = said(inner) if get_origin(inner) is Literal else MANY.get(get_origin(inner) or inner)
        if get_origin(hint) is list:
            return f"a list of {many}" if many else "a list"
        return f"a mapping of names to {many}" if many else "a mapping of names to values"
    return WORDS.get(hint) or str(getattr(hint, "__name__", hint))


def given_twice(key: str, *values: str) -> UserError:
    """The error for a key that is given twice. With the ``values`` as typed, of a key that takes a list, it names the list."""
    from overpaint.grid.overrides import in_grammar

    both = f"{bare(key)}={','.join(map(bare, values))}"
    advice = f"give a list, {both}" if len({*values}) > 1 and in_grammar(both) else "give it once"
    return UserError(f"{bare(key)}= is given twice: {advice}")
