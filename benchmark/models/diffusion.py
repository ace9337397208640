"""The model contract, and the Stable Diffusion 1 and 2 family, which implements it.

Methods, attacks and blocks ask a `DiffusionModel` and never look inside the pipeline. Other families subclass it; see
`overpaint.models.families`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from copy import copy, deepcopy
from operator import index
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    TypeAlias,
    TypedDict,
    Unpack,
    cast,
    overload,
)

import numpy as np
from PIL import Image
from pydantic import Field

from overpaint.errors import UserError, at_least, unknown
from overpaint.grid.typed import check_type
from overpaint.models.attention import recorded_maps
from overpaint.models.guidance import Guidance, GuidanceMaker
from overpaint.models.lazily import torch
from overpaint.models.noise_schedule import NoiseSchedule, Times
from overpaint.models.parameters import ROLES, Parameter, Projection, TextLayer, owners

if TYPE_CHECKING:
    from overpaint.models.token_tables import TextEncoder, TokenTable

#: Side of the network's latents, and factor of the autoencoder's latents, with which an image can be made.
Size, Scale = Annotated[int, Field(ge=1, le=1024)], Annotated[float, Field(ge=1e-6, le=1e6)]
#: Padded ids (n, tokens) of the CLIP tokenizer, or one such tensor for each text encoder.
Ids: TypeAlias = "torch.Tensor | tuple[torch.Tensor, ...]"

_encoding_negative: ContextVar[bool] = ContextVar("encoding_negative", default=False)


def encoding_negative() -> bool:
    """Whether a text is being encoded for guidance to move away from; edits of text encoders may depend on it."""
    return _encoding_negative.get()


#: An image-side guard: takes decoded images, ``None`` for a failed one, and returns as many.
Screen = Callable[[list[Image.Image | None]], list[Image.Image | None]]


class Segment(NamedTuple):
    """A named part of a text encoding (n, rows, columns): which rows it takes, and how many columns it fills."""

    rows: slice
    width: int


class Sampling(TypedDict, total=False):
    """Keyword arguments of `DiffusionModel.sample`, which describes them."""

    steps: int
    guidance_scale: float
    scheduler: str
    size: int | tuple[int, int] | None
    batch_size: int
    negative_prompt: str
    embeds: torch.Tensor | None
    worded: bool
    on_batch: Callable[[int], None] | None


class DiffusionModel(NoiseSchedule):
    """A latent diffusion model of the SD 1 / SD 2 family: one CLIP text encoder, a UNet with cross-attention.

    The text encoder runs without an attention mask on prompts that are padded to the tokenizer's length, as in the
    family's own pipelines. `guidance` composes the predictions in `sample`; an attached guard erasure replaces it, or adds to
    `screens`, which images pass through after they are decoded.

    A subclass for another family sets the class attributes and overrides what differs. Callers only use the public
    methods: latents are (b, c, h, w), text encodings are one tensor (n, rows, columns) whose `layout` names its
    segments, and times are numbers of the model's own schedule, whole or not.

    Attributes:
        family: Name of the family; erasers and attacks declare the families that they support.
        components: The pipeline's components that the model cannot do without.
        causal: Whether a row of a text encoding depends on earlier tokens only, so that padding can be left out.
        changed_by: The method or attack that has changed the weights by mistake (`overpaint.models.intact`); empty if none has.
    """

    family: ClassVar[str] = "sd"
    components: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
    causal: ClassVar[bool] = True
    changed_by: str = ""

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self.tokenizer, self.text_encoder = pipeline.tokenizer, pipeline.text_encoder
        self.denoiser, self.vae = pipeline.unet, pipeline.vae
        for part in (self.text_encoder, self.denoiser, self.vae):
            part.requires_grad_(False).eval()
        self.guidance: GuidanceMaker = Guidance
        self._network: Callable[..., Any] | None = None
        self.screens: tuple[Screen, ...] = ()

    def __repr__(self) -> str:
        """The family, the precision, the device and the size of images: ``DiffusionModel(sd, float32, cpu, 64 pixels)``."""
        precision = str(self.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({self.family}, {precision}, {self.device}, {self.image_size} pixels)"

    def guided_by(self, guidance: GuidanceMaker) -> Callable[[], None]:
        """Compose predictions with another `guidance`. Call the result to restore the one of before."""
        before, self.guidance = self.guidance, guidance

        def restore() -> None:
            self.guidance = before

        return restore

    def screened_by(self, screen: Screen) -> Callable[[], None]:
        """Pass images through ``screen`` after all other `screens`. Call the result to restore those of before."""
        before, self.screens = self.screens, (*self.screens, screen)

        def restore() -> None:
            self.screens = before

        return restore

    def check(self) -> None:
        """Raise a `UserError` if the parts do not fit each other.

        It reads shapes and configurations only: a plan calls it for networks on the meta device, which have no values.
        """
        words, rows = len(self.tokenizer), len(self.text_encoder.get_input_embeddings().weight)
        if words > rows:
            raise UserError(f"the tokenizer has {words} words and the text encoder embeddings of {rows}")
        given, wanted = self.layout["clip"].width, self.denoiser.config.cross_attention_dim
        if given != wanted:
            raise UserError(f"the text encoding is {given} wide, and cross-attention reads {wanted}")
        given, wanted = self.vae.config.latent_channels, self.denoiser.config.in_channels
        if given != wanted:
            raise UserError(f"the autoencoder's latents have {given} channels, and the network reads {wanted}")
        self._check_numbers()

    def _check_numbers(self) -> None:
        """Raise a `UserError` for numbers of the configurations with which no image can be made."""
        longest = getattr(self.text_encoder.config, "max_position_embeddings", self.tokens)
        check_type(self.denoiser.config.sample_size, Size, "the network's sample_size")
        check_type(self.vae.config.scaling_factor, Scale, "the autoencoder's scaling_factor")
        if not 3 <= self.tokens <= longest:
            raise UserError(f"the tokenizer pads to {self.tokens} tokens, and the text encoder reads 3 to {longest}")
        self.check_schedule()

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device  # diffusers' own property searches all modules for hooks

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the network."""
        return next(self.denoiser.parameters()).dtype

    @property
    def tokens(self) -> int:
        """Number of text positions that a prompt is padded to (77 for CLIP)."""
        return self.tokenizer.model_max_length

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along a side of the square that one latent stands for (8 for Stable Diffusion)."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def image_size(self) -> int:
        """Side of a native image in pixels."""
        return self.denoiser.config.sample_size * self.pixels_per_latent

    @property
    def text_encoders(self) -> list[TextEncoder]:
        """All text encoders; `tokenizer` belongs to the first one."""
        return [self.text_encoder]

    def token_ids(self, text: str) -> list[int]:
        """BOS, word pieces, EOT; without padding, truncated to the model's length."""
        return self.tokenizer(text, truncation=True, max_length=self.tokens).input_ids

    def last_subject_token(self, text: str) -> int:
        """Position of the last word piece: the number of ids minus two, 0 (the BOS row) for the empty string."""
        return len(self.token_ids(text)) - 2

    def padded_ids(self, texts: Sequence[str], truncate: bool = False) -> torch.Tensor:
        """Ids (n, tokens) of the CLIP tokenizer.

        Raises:
            UserError: A text is too long and ``truncate`` is off. A truncated concept name would be another concept.
        """
        ids = self.tokenizer(list(texts), padding="max_length", max_length=self.tokens, truncation=truncate).input_ids
        for text, row in zip(texts, ids, strict=True):
            if len(row) > self.tokens:
                raise UserError(f"prompt has {len(row)} tokens, the model takes {self.tokens}: {text!r}")
        return torch.tensor(ids, device=self.device)

    def ids(self, texts: Sequence[str], truncate: bool = False) -> tuple[torch.Tensor, ...]:
        """What the text encoders read: one tensor of padded ids (n, tokens) an encoder."""
        return self.encoder_ids(self.padded_ids(texts, truncate))

    def encoder_ids(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Ids (n, tokens) of the CLIP tokenizer as each text encoder reads them."""
        return (ids,)

    def too_long(self, texts: Sequence[str]) -> int:
        """Number of texts that the model truncates."""
        return sum(len(row) > self.tokens for row in self.tokenizer(list(texts)).input_ids)

    def encode(self, texts: Sequence[str], truncate: bool = False) -> torch.Tensor:
        """Text encodings (n, rows, columns), laid out as `layout` says."""
        return self.encode_ids(self.ids(texts, truncate))

    def encode_ids(self, ids: Ids, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Encodings (n, rows, columns) of padded ids (n, tokens); differentiable in the encoder's parameters.

        Here they are the encoder's rows after its final layer norm. ``mask`` (n, tokens) is 1 at tokens that may be
        attended to; without a mask padding is attended to like any other token.
        """
        (own,) = self._one_each(ids)
        return self.text_encoder(own, attention_mask=mask)[0]

    def _one_each(self, ids: Ids) -> tuple[torch.Tensor, ...]:
        return self.encoder_ids(ids) if isinstance(ids, torch.Tensor) else ids

    @property
    def layout(self) -> Mapping[str, Segment]:
        """The segments of a text encoding by name, in the order of their rows; ``clip`` has one row a token."""
        return {"clip": Segment(slice(None), self.text_encoder.config.hidden_size)}

    def parts(self, embeds: torch.Tensor) -> dict[str, torch.Tensor]:
        """The segments (…, rows, width) of text encodings (…, rows, columns), as views."""
        return {name: embeds[..., part.rows, : part.width] for name, part in self.layout.items()}

    def join(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Text encodings (n, rows, columns) of segments (n, rows, width), narrow ones padded with zeros."""
        columns = max(part.width for part in self.layout.values())
        padded = [torch.nn.functional.pad(parts[name], (0, columns - parts[name].shape[-1])) for name in self.layout]
        return torch.cat(padded, dim=-2)

    def unconditional(self, negative_prompt: str = "") -> torch.Tensor:
        """The encoding (1, rows, columns) that guidance moves away from: of the empty or a negative prompt.

        `encoding_negative` is true while it is computed.
        """
        token = _encoding_negative.set(True)
        try:
            return self.encode([negative_prompt])
        finally:
            _encoding_negative.reset(token)

    def with_text_encoder_copies(self) -> DiffusionModel:
        """A shallow copy whose text encoders are copies: they keep their weights when an erasure is put on this model."""
        view = copy(self)
        for name in ("text_encoder", "text_encoder_2"):
            if hasattr(self, name):
                setattr(view, name, deepcopy(getattr(self, name)))
        return view

    @property
    def token_table(self) -> torch.Tensor:
        """Input embeddings (words, width) of all words; the tables of several encoders stand side by side."""
        tables = [encoder.get_input_embeddings().weight for encoder in self.text_encoders]
        return tables[0] if len(tables) == 1 else torch.cat(tables, dim=-1)

    def token_embeddings(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows (n, tokens, width) of the token table for ids (n, tokens), learned words included."""
        parts = zip(self.text_encoders, self.encoder_ids(ids), strict=True)
        return torch.cat([encoder.get_input_embeddings()(own) for encoder, own in parts], dim=-1)

    def encode_embeddings(self, embeddings: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Encodings (n, rows, columns) of token embeddings (n, tokens, width) that replace the table's rows.

        Differentiable in ``embeddings``. The encoder reads from ``ids`` (n, tokens) where a prompt ends.
        """
        from overpaint.models.token_tables import GivenEmbeddings

        with self._tables(lambda table, columns: GivenEmbeddings(embeddings[..., columns])):
            return self.encode_ids(ids)

    @contextmanager
    def _tables(self, stand_in: Callable[[TokenTable, slice], torch.nn.Module]) -> Iterator[None]:
        """Replace each encoder's token table by ``stand_in(table, its columns of token_table)`` inside the block."""
        plain, start = [encoder.get_input_embeddings() for encoder in self.text_encoders], 0
        try:
            for encoder, table in zip(self.text_encoders, plain, strict=True):
                width = table.weight.shape[1]
                encoder.set_input_embeddings(stand_in(table, slice(start, start + width)))
                start += width
            yield
        finally:
            for encoder, table in zip(self.text_encoders, plain, strict=True):
                encoder.set_input_embeddings(table)

    @contextmanager
    def learned_tokens(self, tokens: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Add placeholder words with their input embeddings (width,) inside the block.

        Every encoding reads the embeddings and is differentiable in them, so that an attack can train them inside the
        block. The model's own table is neither copied nor changed.
        """
        from overpaint.models.token_tables import ExtendedTable, extended_tokenizer

        if not tokens:
            yield
            return
        width = sum(encoder.get_input_embeddings().weight.shape[1] for encoder in self.text_encoders)
        for word, row in tokens.items():
            if row.shape != (width,):
                shape = tuple(row.shape)
                raise UserError(f"the learned word {word!r} has shape {shape}, {self.family} takes ({width},)")
        tokenizer, rows = self.tokenizer, list(tokens.values())
        extended = extended_tokenizer(tokenizer, list(tokens))
        try:
            self.tokenizer = extended
            with self._tables(lambda table, columns: ExtendedTable(table, len(tokenizer), rows, columns)):
                yield
        finally:
            self.tokenizer = tokenizer

    def predict(self, latents: torch.Tensor, timesteps: Times, embeds: torch.Tensor) -> torch.Tensor:
        """The network's output (noise, or velocity for v-prediction models) for latents (b, c, h, w).

        ``timesteps`` is one time for all rows, or one a row. If ``latents`` stacks a batch several times, ``timesteps``
        may have one time a row of that batch.
        """
        if isinstance(timesteps, torch.Tensor) and timesteps.ndim == 1:
            timesteps = timesteps.repeat(len(latents) // len(timesteps))
        network = self.denoiser if self._network is None else self._network
        return network(latents, timesteps, **self.conditioning(latents, embeds), return_dict=False)[0]

    def conditioning(self, latents: torch.Tensor, embeds: torch.Tensor) -> dict[str, Any]:
        """The network's further arguments for latents (b, c, h, w) and text encodings (b, rows, columns)."""
        return {"encoder_hidden_states": embeds}

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Inside the block `predict` runs the network through ``torch.compile``. The first call of a process compiles it.

        Without a guard, the keys and values of a text are computed once, and layers that no text reaches compute each
        latent once for both sides of guidance. The decoder has its weights in channels-last order. Weights may change
        between blocks. Layers may not: compiled code ignores hooks that are added later.
        """
        from overpaint.models.compilation import compiled_denoiser

        guarded = self.guidance.guard is not None  # a guard may change what a layer reads
        of_the_text = [f"{name}.attn2.{layer}" for name in self.cross_attention() for layer in ("to_k", "to_v")]
        layers = ([], []) if guarded else (of_the_text, self.before_the_text())
        self.vae.to(memory_format=torch.channels_last)
        try:
            with compiled_denoiser(self.denoiser, *layers) as self._network:
                yield
        finally:
            self._network = None
            self.vae.to(memory_format=torch.contiguous_format)

    def before_the_text(self) -> list[str]:
        """Names of the denoiser's layers whose inputs depend on latents and time alone."""
        names = ["conv_in"]
        for place, block in enumerate(self.denoiser.down_blocks):
            if getattr(block, "has_cross_attention", False):
                return [*names, f"down_blocks.{place}.resnets.0"]
            names.append(f"down_blocks.{place}")
        return names

    def attention_maps(self) -> AbstractContextManager[dict[str, torch.Tensor]]:
        """``with model.attention_maps() as maps:`` records cross-attention; see `recorded_maps`.

        The keys are the names of `cross_attention`, the values (batch, heads, pixels, tokens).
        """
        return recorded_maps(self.cross_attention())

    def cross_attention(self) -> dict[str, torch.nn.Module]:
        """The layers that carry text into the image, by the name of the transformer block that holds them."""
        named = self.denoiser.named_modules()
        return {name.removesuffix(".attn2"): layer for name, layer in named if name.endswith(".attn2")}

    def feature_maps(self) -> dict[str, torch.nn.Module]:
        """The layers whose outputs are maps (b, channels, h, w) inside the denoiser, by name: the middle block, whose
        output is called h-space, and each transformer."""
        transformers = dict.fromkeys(name.rsplit(".transformer_blocks", 1)[0] for name in self.cross_attention())
        return {name: self.denoiser.get_submodule(name) for name in ("mid_block", *transformers)}

    def skip_connections(self) -> dict[str, tuple[torch.nn.Module, int]]:
        """The decoder's layers that read a skip connection, by name, each with the width of its backbone.

        A layer's input (b, channels, h, w) has the backbone's channels first and the skip connection's after them.
        """
        width, found = self.denoiser.config.block_out_channels[-1], {}
        for number, block in enumerate(self.denoiser.up_blocks):
            for place, layer in enumerate(block.resnets):
                found[f"up_blocks.{number}.resnets.{place}"] = layer, width
                width = layer.out_channels
        return found

    def projections(self, *roles: str, stream: str | None = None) -> list[Projection]:
        """Cross-attention projections by role (``key``, ``value``, ``query``, ``out``) in state-dict order.

        ``stream`` keeps those that read the ``"text"`` or the ``"image"`` (``None``: both).
        """
        for role in roles:
            if role not in ROLES:
                raise unknown("projection role", role, ROLES)
        return [
            Projection(p.name, p.role, cast(torch.nn.Linear, p.module), p.stream)
            for p in self.parameters(self.denoiser_names)
            if p.attention == "cross" and p.role in roles and p.is_weight and stream in (None, p.stream)
        ]

    def parameters(self, names: Sequence[str] | None = None) -> list[Parameter]:
        """Parameters by name (``None``: all) with their layers and what these do in attention."""
        places = self.parameter_owners()
        return [self._described(name, places[name][0]) for name in (places if names is None else names)]

    def _described(self, name: str, module: torch.nn.Module) -> Parameter:
        attention = "cross" if ".attn2." in name else "self" if ".attn1." in name else ""
        role = next((role for role, layer in ROLES.items() if f".{layer}." in name), "")
        stream = "text" if attention == "cross" and role in ("key", "value") else "image"
        return Parameter(name, module, attention, role, stream if role else "")

    def text_layers(self, encoder: int = 0) -> list[TextLayer]:
        """The blocks of a text encoder from first to last, each with the second projection of its MLP."""
        names = {module: name for name, (module, leaf) in self.parameter_owners().items() if leaf == "weight"}
        parts: Iterator[Any] = self.text_encoders[encoder].modules()
        blocks = [m for m in parts if isinstance(getattr(m, "mlp", None), torch.nn.Module)]
        return [TextLayer(names[block.mlp.fc2], "text", block.mlp.fc2, block=block) for block in blocks]

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Every parameter that an erasure may change, by its diffusers state-dict name.

        Names of the denoiser are plain. Names of the text encoder start with ``text_model.``, as in published files.
        """
        return {name: getattr(module, leaf) for name, (module, leaf) in self.parameter_owners().items()}

    def parameter_owners(self) -> dict[str, tuple[torch.nn.Module, str]]:
        """For every name of `named_parameters`, the module that holds it and the attribute's name there."""
        prefix = "text_model."  # published files have it; newer versions of transformers do not
        text = {
            name if name.startswith(prefix) else prefix + name: place
            for name, place in owners(self.text_encoder).items()
        }
        return owners(self.denoiser) | text

    @property
    def text_encoder_names(self) -> list[str]:
        """Names of `named_parameters` that belong to the text encoders, in their own order."""
        denoiser = set(self.denoiser_names)
        return [name for name in self.parameter_owners() if name not in denoiser]

    @property
    def denoiser_names(self) -> list[str]:
        """Names of `named_parameters` that belong to the denoiser, in its own order."""
        return [name for name, _ in self.denoiser.named_parameters()]

    def to_latents(
        self, images: Sequence[Image.Image | None], generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Scaled latents of PIL images: the posterior mean, or a draw from the posterior if a generator is given."""
        return self.pixels_to_latents(self._pixels(images), generator)

    def pixels_to_latents(self, pixels: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """`to_latents` of pixels (n, 3, height, width) in [−1, 1]."""
        posterior = self._posterior(pixels)
        latents = posterior.mean if generator is None else posterior.sample(generator)
        return (latents * self.vae.config.scaling_factor).to(self.dtype)

    def posterior(self, images: Sequence[Image.Image | None], black: float = -1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation (n, c, h, w) of the scaled latents of PIL images; pixels run from ``black`` to 1."""
        posterior, scale = self._posterior(self._pixels(images, black)), self.vae.config.scaling_factor
        return (posterior.mean * scale).to(self.dtype), (posterior.std * scale).to(self.dtype)

    def _pixels(self, images: Sequence[Image.Image | None], black: float = -1.0) -> torch.Tensor:
        finite = [image for image in images if image is not None]
        if len(finite) < len(images):
            raise UserError("cannot encode a failed picture: its pixels were non-finite when it was made")
        pixels = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in finite])
        pixels = pixels / (255 / (1 - black)) + black
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _posterior(self, pixels: torch.Tensor):
        with torch.no_grad():
            return self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist

    def to_images(self, latents: torch.Tensor) -> list[Image.Image | None]:
        """`decoded` images after the `screens` that erasures have put on the model."""
        images = self.decoded(latents)
        for screen in self.screens:
            images = screen(images)
        return images

    def decoded(self, latents: torch.Tensor) -> list[Image.Image | None]:
        """Decode scaled latents to PIL images; ``None`` for an image with non-finite pixels."""
        with torch.no_grad():
            pixels = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor, return_dict=False)[0]
        finite = pixels.isfinite().flatten(1).all(dim=1).tolist()
        array = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(image) if made else None for image, made in zip(array, finite, strict=True)]

    def noise(self, seeds: Sequence[int], size: int | tuple[int, int] | None = None) -> torch.Tensor:
        """Start noise (n, c, h, w), drawn by one CPU generator a seed so that it depends on nothing but the seed.

        ``size`` is the side of the images in pixels, or their width and height.
        """
        width, height = size if isinstance(size, tuple) else (size or self.image_size,) * 2
        for side in (width, height):
            if side % self.pixels_per_latent:
                raise UserError(
                    f"the side of an image must be a multiple of {self.pixels_per_latent} pixels, got {side}"
                )
        cells = (height // self.pixels_per_latent, width // self.pixels_per_latent)
        shape = (1, self.denoiser.config.in_channels, *cells)
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
        return torch.cat(drawn).to(self.device, self.dtype)

    @overload
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        keep_failed: Literal[False] = ...,
        **how: Unpack[Sampling],
    ) -> list[Image.Image]: ...

    @overload
    def sample(
        self, prompts: Sequence[str], seeds: Sequence[int], *, keep_failed: bool, **how: Unpack[Sampling]
    ) -> list[Image.Image | None]: ...

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int = 20,
        guidance_scale: float = 7.5,
        scheduler: str = "ddim",
        size: int | tuple[int, int] | None = None,
        batch_size: int = 16,
        negative_prompt: str = "",
        embeds: torch.Tensor | None = None,
        worded: bool = True,
        on_batch: Callable[[int], None] | None = None,
        keep_failed: bool = False,
    ) -> list[Image.Image] | list[Image.Image | None]:
        """Images for prompts and seeds (one each). An image depends on its prompt and seed, not on its batch.

        Over-long prompts are truncated (`too_long` counts them), as in diffusers and published protocols.

        Args:
            prompts: n texts.
            seeds: n whole numbers; each seeds one CPU generator, for one image.
            steps: Steps of the sampler, from 1 up.
            guidance_scale: Classifier-free guidance; 1 is none.
            scheduler: ``"ddim"``, ``"dpm"``, ``"euler"``, ``"lms"`` or ``"pndm"``.
            size: Side in pixels, or width and height; ``None`` for the model's own.
            batch_size: Most images that are computed at once; it does not change them.
            negative_prompt: Takes the place of the empty prompt in guidance.
            embeds: Text encodings (n, rows, columns) to use instead of the prompts' own.
            worded: Whether ``embeds`` encode the prompts. ``False`` for learned embeddings, of which guards read no prompt.
            on_batch: Called after each batch with its number of images.
            keep_failed: Return ``None`` for an image with non-finite values instead of raising.

        Returns:
            n PIL images.

        Raises:
            UserError: A value is not allowed, or an image has non-finite values: the model or its erasure is broken, or
                overflows.
        """
        if isinstance(prompts, str) or isinstance(seeds, int):
            raise UserError(f"sample() takes lists of prompts and seeds, got {prompts!r} and {seeds!r}")
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise UserError(f"sample() takes texts as prompts, got {prompt!r}")
        for seed in seeds:
            if not _is_seed(seed):
                raise UserError(f"sample() takes whole numbers from 0 to 2**63 - 1 as seeds, got {seed!r}")
        at_least(1, steps=steps, batch_size=batch_size)
        if not isinstance(negative_prompt, str):
            raise UserError(f"sample() takes a text as negative_prompt, got {negative_prompt!r}")
        if len(prompts) != len(seeds):
            raise UserError(f"sample() takes one seed per prompt, got {len(prompts)} prompts and {len(seeds)} seeds")
        images: list[Image.Image | None] = []
        if not len(prompts):
            return images
        with torch.no_grad():
            if embeds is None:
                embeds = self._encoded_once(prompts, batch_size)
            nothing = self.unconditional(negative_prompt)
            for start in range(0, len(prompts), batch_size):
                texts, drawn = prompts[start : start + batch_size], seeds[start : start + batch_size]
                positive = embeds[start : start + batch_size]
                read = texts if worded else None
                guidance = self.guidance(self, positive, nothing.expand_as(positive), guidance_scale, read)
                latents = self.denoise(self.noise(drawn, size), guidance, scheduler, steps)
                images += self.to_images(latents)
                if on_batch:
                    on_batch(len(texts))
        failed = images.count(None)
        if failed and not keep_failed:
            raise UserError(
                f"{failed} of {len(images)} images have non-finite values: the model or its erasure is broken, or "
                f"overflows in {str(self.dtype).removeprefix('torch.')}"
            )
        return images

    def _encoded_once(self, prompts: Sequence[str], batch_size: int) -> torch.Tensor:
        """Encodings (n, rows, columns) of prompts; equal prompts are encoded once."""
        distinct = list(dict.fromkeys(prompts))
        blocks = [distinct[start : start + batch_size] for start in range(0, len(distinct), batch_size)]
        encoded = torch.cat([self.encode(block, truncate=True) for block in blocks])
        return encoded[[distinct.index(text) for text in prompts]]

    def denoise(self, noise: torch.Tensor, guidance: Guidance, scheduler: str, steps: int, stop: int | None = None):
        """Run the scheduler from unit noise, for ``stop`` steps if given. Returns latents of the shape of ``noise``."""
        schedule = self.scheduler(scheduler, steps)
        latents = noise * schedule.init_noise_sigma
        for step, timestep in enumerate(schedule.timesteps[:stop]):
            scaled = schedule.scale_model_input(latents, timestep)
            latents = schedule.step(guidance(scaled, timestep, step), timestep, latents, return_dict=False)[0]
        return latents


def _is_seed(seed: Any) -> bool:
    """Whether this is a whole number, of any library, that a generator takes as its seed."""
    try:
        return 0 <= index(seed) < 2**63
    except TypeError:
        return False
