"""The SDXL family: two text encoders, read before their last layer, and a pooled text vector."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from overpaint.errors import UserError
from overpaint.models.diffusion import DiffusionModel, Ids, Segment
from overpaint.models.parameters import owners
from overpaint.models.token_tables import TextEncoder


class SDXLModel(DiffusionModel):
    """A latent diffusion model of the SDXL family.

    A text encoding is (n, tokens + 1, columns). Row i holds position i of both encoders side by side, after their last
    but one layer and without the final norm. The last row is the second encoder's pooled vector, padded with zeros, so
    that encodings can be stacked, expanded and picked like those of other families. The sizes that the network also
    reads are those of the image, uncropped.
    """

    family = "sdxl"
    components = (*DiffusionModel.components, "tokenizer_2", "text_encoder_2")

    def __init__(self, pipeline: Any):
        if pipeline.text_encoder is None:
            raise UserError(
                "this SDXL pipeline has one text encoder, as refiners do; overpaint supports base models only"
            )
        if pipeline.tokenizer.get_vocab() != pipeline.tokenizer_2.get_vocab():
            raise UserError(
                "the two tokenizers of this SDXL pipeline have different vocabularies; overpaint needs equal ones"
            )
        super().__init__(pipeline)
        self.text_encoder_2 = pipeline.text_encoder_2.requires_grad_(False).eval()
        if self.vae.dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae = copy.deepcopy(self.vae).float()  # its activations overflow in half precision
        else:
            self.vae = copy.copy(self.vae)  # with the same weights: the pipeline may be the user's
        self.vae.enable_slicing()  # one image of 1024 pixels at a time: each takes gigabytes of activations

    @property
    def text_encoders(self) -> list[TextEncoder]:
        return [self.text_encoder, self.text_encoder_2]

    @property
    def layout(self) -> Mapping[str, Segment]:
        """Both encoders' rows side by side, then the second one's pooled vector."""
        width = sum(encoder.config.hidden_size for encoder in self.text_encoders)
        pooled = self.text_encoder_2.config.projection_dim
        return {"clip": Segment(slice(None, -1), width), "pooled": Segment(slice(-1, None), pooled)}

    def encoder_ids(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Ids (n, tokens) for both encoders; each tokenizer pads with its own token after the end token."""
        padding = torch.arange(ids.shape[1], device=ids.device) > self._ends(ids)[:, None]
        return ids, ids.masked_fill(padding, self.pipeline.tokenizer_2.pad_token_id)

    def _ends(self, ids: torch.Tensor) -> torch.Tensor:
        """Position (n,) of the first end token."""
        return (ids == self.tokenizer.eos_token_id).int().argmax(dim=1)

    def encode_ids(self, ids: Ids, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Encodings (n, tokens + 1, columns) of padded ids (n, tokens); differentiable in the encoders' parameters."""
        if mask is not None:
            raise ValueError("SDXL's encoders run without an attention mask")
        each = self._one_each(ids)
        first, second = (
            encoder(own, output_hidden_states=True) for encoder, own in zip(self.text_encoders, each, strict=True)
        )
        rows = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        # for old configurations transformers takes the highest id as the end token, which a learned word would be
        ends = second.last_hidden_state[torch.arange(len(rows), device=rows.device), self._ends(each[0])]
        return self.join({"clip": rows, "pooled": self.text_encoder_2.text_projection(ends)[:, None]})

    def unconditional(self, negative_prompt: str = "") -> torch.Tensor:
        """As in SDXL's own pipeline: zeros without a negative prompt, if the model was trained that way."""
        embeds = super().unconditional(negative_prompt)
        zeros = not negative_prompt and self.pipeline.config.force_zeros_for_empty_prompt
        return torch.zeros_like(embeds) if zeros else embeds

    def conditioning(self, latents: torch.Tensor, embeds: torch.Tensor) -> dict[str, Any]:
        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        sizes = embeds.new_tensor([height, width, 0, 0, height, width]).expand(len(latents), -1)
        parts = self.parts(embeds)
        return {
            "encoder_hidden_states": parts["clip"],
            "added_cond_kwargs": {"text_embeds": parts["pooled"][:, 0], "time_ids": sizes},
        }

    def before_the_text(self) -> list[str]:
        """The time embedding of SDXL holds the pooled text."""
        return ["conv_in"]

    def parameter_owners(self) -> dict[str, tuple[torch.nn.Module, str]]:
        """Names of the second encoder are those in its file, after ``text_encoder_2.``."""
        second = owners(self.text_encoder_2)
        return super().parameter_owners() | {f"text_encoder_2.{name}": place for name, place in second.items()}
