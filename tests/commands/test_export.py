"""`overpaint export`: the folder of an erased model is read by diffusers with the call that is printed."""

import diffusers
import pytest
import torch

from command_line import CommandLine


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    return CommandLine(tmp_path_factory.mktemp("export"))


@pytest.mark.parametrize(("precision", "half"), [("float32", ""), ("bfloat16", ", torch_dtype=torch.bfloat16")])
def test_the_printed_call_loads_a_pipeline_that_draws(cli, precision, half):
    model = f"model.precision={precision}"
    cli("erase", "method=uce", "concepts=church", model, f"out={precision}.safetensors")
    said = cli("export", f"erasure={precision}.safetensors", f"out={precision}", model).stderr
    assert f"diffusers.DiffusionPipeline.from_pretrained('{precision}'{half})" in said
    dtype = {"torch_dtype": torch.bfloat16} if half else {}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(cli.folder / precision, **dtype)
    (image,) = pipeline("a church", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images
    assert image.convert("L").getextrema()[1] > 0
