"""The SDXL family: two text encoders, read before their last layer, and a pooled text vector beside their rows."""

from __future__ import annotations

from typing import Any

import torch

from overpaint.errors import UserError
from overpaint.models.diffusion import DiffusionModel, owners


class SDXLModel(DiffusionModel):
    """A latent diffusion model of the SDXL family.

    Its text embeddings are (n, tokens + 1, width): row i is position i in both encoders, side by side, after their last
    layer but one and without final norm; the row behind the tokens is the second encoder's pooled vector, zeros after
    it. `conditioning` takes them apart, so that they can be stacked, expanded and picked like any other model's.
    The sizes that the network also asks for are those of the image, uncropped.
    """

    family = "sdxl"

    def __init__(self, pipeline):
        if pipeline.text_encoder is None:
            raise UserError("this SDXL pipeline has one text encoder, as refiners have; overpaint takes base models")
        if pipeline.tokenizer.get_vocab() != pipeline.tokenizer_2.get_vocab():
            raise UserError(
                "the two tokenizers of this SDXL pipeline know different words, which overpaint cannot align"
            )
        super().__init__(pipeline)
        self.text_encoder_2 = pipeline.text_encoder_2.requires_grad_(False).eval()
        if self.vae.dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae.float()  # its activations overflow in half precision

    @property
    def text_encoders(self) -> list[torch.nn.Module]:
        return [self.text_encoder, self.text_encoder_2]

    @property
    def _pooled_width(self) -> int:
        return self.text_encoder_2.config.projection_dim

    def encoder_ids(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """The ids (n, tokens) for either encoder: its padding, behind the end token, is each tokenizer's own."""
        padding = torch.arange(ids.shape[1], device=ids.device) > self._ends(ids)[:, None]
        return [ids, ids.masked_fill(padding, self.pipeline.tokenizer_2.pad_token_id)]

    def _ends(self, ids: torch.Tensor) -> torch.Tensor:
        """Position (n,) of the first end token."""
        return (ids == self.tokenizer.eos_token_id).int().argmax(dim=1)

    def encode_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, tokens + 1, width) of padded ids (n, tokens); differentiable in the encoders' parameters."""
        first, second = (
            encoder(own, output_hidden_states=True) for encoder, own in zip(self.text_encoders, self.encoder_ids(ids))
        )
        rows = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        # transformers looks for the highest id where a configuration is old, which a learned word would be
        ends = second.last_hidden_state[torch.arange(len(ids), device=ids.device), self._ends(ids)]
        pooled = torch.zeros_like(rows[:, :1])
        pooled[..., : self._pooled_width] = self.text_encoder_2.text_projection(ends)[:, None]
        return torch.cat([rows, pooled], dim=1)

    def unconditional(self, negative_prompt: str = "") -> torch.Tensor:
        """As in SDXL's own pipeline: zeros where there is no negative prompt and the model was trained so."""
        embeds = self.encode([negative_prompt])
        zeros = not negative_prompt and self.pipeline.config.force_zeros_for_empty_prompt
        return torch.zeros_like(embeds) if zeros else embeds

    def conditioning(self, latents: torch.Tensor, embeds: torch.Tensor) -> dict[str, Any]:
        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        sizes = embeds.new_tensor([height, width, 0, 0, height, width]).expand(len(latents), -1)
        pooled = embeds[:, -1, : self._pooled_width]
        return {
            "encoder_hidden_states": embeds[:, :-1],
            "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes},
        }

    def parameter_owners(self) -> dict[str, tuple[torch.nn.Module, str]]:
        """The second encoder's names are those of its file behind ``text_encoder_2.``."""
        second = owners(self.text_encoder_2)
        return super().parameter_owners() | {f"text_encoder_2.{name}": place for name, place in second.items()}
