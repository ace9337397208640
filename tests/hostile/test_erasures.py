"""Hostile erasure files: a row is a name, the tensors and header (or the bytes) of a file, and a part of the sentence."""

import json

import pytest
import torch
from safetensors.torch import save_file

KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
HEADER = {"method": "uce", "kind": "delta", "settings": {}, "manifest": {}}
W, UP, DOWN = torch.zeros(4, 4), torch.zeros(4, 2), torch.zeros(2, 4)
#: Name -> (tensors, header: JSON values or a text, part of the sentence).
ERASURES = {
    "a header that is no JSON": ({"a": W}, "{", "is not an overpaint erasure file"),
    "a header that is a list": ({"a": W}, [], "its header is not a JSON object"),
    "a header that is a number": ({"a": W}, 5, "its header is not a JSON object"),
    "a header nested deeply": ({"a": W}, "[" * 10**5, "is not an overpaint erasure file"),
    "earlier erasures without end": (
        {"a": W},
        '{"method": "uce", "kind": "delta", "settings": {}, "manifest": {}, "before": ' * 3000 + "{}" + "}" * 3000,
        "header",
    ),
    "no method": ({"a": W}, {k: v for k, v in HEADER.items() if k != "method"}, "has no method"),
    "a method that is a list": ({"a": W}, HEADER | {"method": []}, "has no method"),
    "no settings": ({"a": W}, HEADER | {"settings": None}, "has no settings"),
    "a manifest that is a text": ({"a": W}, HEADER | {"manifest": "x"}, "has no manifest"),
    "an unknown kind": ({"a": W}, HEADER | {"kind": "dleta"}, "did you mean 'delta'"),
    "integers": ({"a": torch.ones(2, dtype=torch.int64)}, HEADER, "a holds int64 values"),
    "booleans": ({"a": torch.ones(2, dtype=torch.bool)}, HEADER, "a holds bool values"),
    "NaN": ({"a": torch.tensor([float("nan")])}, HEADER, "a has non-finite values"),
    "NaN in a part": ({"part:a": torch.tensor([float("inf")])}, HEADER, "part:a has non-finite values"),
    "up alone": ({"a:up": UP}, HEADER, "a:up without a:down"),
    "down alone": ({"a:down": DOWN}, HEADER, "a:down without a:up"),
    "factors of other ranks": ({"a:up": UP, "a:down": torch.zeros(3, 4)}, HEADER, "factors of a are (4, 2) and (3, 4)"),
    "factors that are vectors": ({"a:up": torch.zeros(4), "a:down": DOWN}, HEADER, "factors of a are"),
    "tensors below nothing": ({"before:a": W}, HEADER, "tensors of an earlier erasure"),
    "an earlier erasure that is a text": ({"a": W}, HEADER | {"before": "x"}, "its header is not a JSON object"),
    "an earlier erasure that is null": ({"a": W}, HEADER | {"before": None}, "its header is not a JSON object"),
    "a method with an escape": ({"a": W}, HEADER | {"method": "\x1b[31m"}, "is no name"),
    "a method that is half a character": ({"a": W}, HEADER | {"method": "\ud800"}, "is no name"),
    "a kind of 100,000 letters": ({"a": W}, HEADER | {"kind": "x" * 100_000}, "unknown kind 'xxx"),
    "complex numbers": ({KEY: torch.zeros(4, dtype=torch.complex64)}, HEADER, "holds complex64 values"),
    "numbers of 8 bits": ({KEY: W.to(torch.float8_e4m3fn)}, HEADER, "holds float8_e4m3fn values"),
    "tensors of its own": ({"part:a": W}, HEADER, "a delta has no tensors of its own"),
    "an unknown name": ({"unet.weight": W}, HEADER, "changes unet.weight, which the model does not have"),
    "a name with an escape": ({"a\x1b[31m\n": W}, HEADER, "which the model does not have"),
    "a name of 100,000 letters": ({"a" * 100_000: W}, HEADER, "which the model does not have"),
    "another shape": ({KEY: W}, HEADER, "does not fit the model"),
    "a scalar": ({KEY: torch.zeros(())}, HEADER, "does not fit the model"),
    "no value": ({KEY: torch.zeros(0, 4)}, HEADER, "does not fit the model"),
    "factors of another shape": ({f"{KEY}:up": UP, f"{KEY}:down": DOWN}, HEADER, "does not fit the model"),
    "an adapter": ({"part:a": W}, HEADER | {"kind": "adapter", "method": "spm"}, "acts while sampling"),
    "a guard": ({"part:a": W}, HEADER | {"kind": "guard", "method": "sld"}, "acts while sampling"),
    "a hash of other weights": ({KEY: torch.zeros(32, 32)}, HEADER | {"manifest": {"base": 5}}, "model"),
}  # fmt: skip
#: Name -> bytes of a file of another format.
FILES = {
    "nothing": b"",
    "text": b"text",
    "zeros": b"\x00" * 100,
    "a header larger than the file": b"\xff" * 8 + b"{}",
    "a header of another program": b"\x02\x00\x00\x00\x00\x00\x00\x00{}",
    "a header that is cut": b"\x08\x00\x00\x00\x00\x00\x00\x00{}",
}


@pytest.fixture
def arguments(goldens):
    model = ["model=local", f"model.path={goldens / 'tiny_sd'}"]
    return ["export", "erasure=e.safetensors", "out=exported", *model]


@pytest.mark.parametrize("name", ERASURES)
def test_a_damaged_erasure_is_refused_in_one_sentence(refused, here, arguments, name):
    tensors, header, said = ERASURES[name]
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors, here / "e.safetensors", metadata={"overpaint": text})
    refused(*arguments, said=said)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_format_is_refused(refused, here, arguments, name):
    (here / "e.safetensors").write_bytes(FILES[name])
    refused(*arguments, said="is not an overpaint erasure file")


def test_the_good_erasure_is_taken(here, called, arguments):
    model = arguments[-2:]
    assert called("erase", "method=uce", "concepts.erase=[dog]", "out=e.safetensors", *model) == 0
    assert called(*arguments) == 0 and (here / "exported" / "model_index.json").is_file()
    assert sorted(path.name for path in here.iterdir()) == ["e.safetensors", "exported"]
