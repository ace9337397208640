"""The weights that a setting of a detector or an extractor names: an asset, a file or folder, or a repository of the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overpaint.errors import AssetMissing, UserError
from overpaint.grid.assets import REFERENCE, asset, located
from overpaint.models.sources import NETWORK_SUFFIXES, remembered_hash

if TYPE_CHECKING:
    import torch

#: Files of a folder that decide what a network computes.
SUFFIXES = (*NETWORK_SUFFIXES, ".onnx")


def weights_path(reference: str) -> Path:
    """The file or folder of ``asset:NAME``, ``asset:NAME/FILE``, a path, or a repository of the hub (``owner/name``).

    Raises:
        AssetMissing: the asset is not on this machine, or the repository is not in the hub's cache.
    """
    found = located(reference)
    if found:
        return found
    path = Path(reference).expanduser()
    if path.exists():
        return path
    if path.is_absolute() or reference.startswith((".", "~")) or reference.count("/") != 1:
        raise UserError(f"{reference} does not exist (weights are asset:NAME, a folder, or a hub id like owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(reference, local_files_only=True))
    except Exception as error:  # of several libraries: none of its files is in the cache
        raise AssetMissing(f"{reference} is not in the hub's cache; get it with: hf download {reference}") from error


def weights_hashes(reference: str) -> dict[str, str]:
    """The SHA-256 of every file behind a reference, by name."""
    named = REFERENCE.fullmatch(reference)
    if named:
        hashes = asset(named[1]).hashes()
        return {f"{named[1]}/{name}": value for name, value in hashes.items() if named[2] in (None, name)}
    path = weights_path(reference)
    if path.is_file():
        return {path.name: remembered_hash(path)}
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not files:
        raise UserError(f"{reference} holds no weights ({', '.join(SUFFIXES)})")
    return {file.relative_to(path).as_posix(): remembered_hash(file) for file in files}


def load_state(build: Callable[[], Any], state: Mapping[str, torch.Tensor], reference: str) -> Any:
    """The network that ``build`` returns with these tensors, in single precision, ready to score.

    It is built without memory, so that no random numbers are drawn. Raises a `UserError` if names or shapes do not fit.
    """
    import torch

    with torch.device("meta"):
        network = build()
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise UserError(f"{reference} does not fit the network: {' '.join(str(error).split())[:300]}") from error
    return network.float().eval().requires_grad_(False)


@contextmanager
def single_precision() -> Iterator[None]:
    """Context: networks compute without gradients, and float32 is float32 on GPUs, where torch's convolutions are TF32."""
    import torch

    # without enabled=True, flags() disables cuDNN
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def load_pretrained(kind: Any, config: Any, state: Mapping[str, torch.Tensor], reference: str, **how: Any) -> Any:
    """The network of a class of transformers with exactly these tensors, in single precision, ready to score.

    Raises a `UserError`, which names the ``reference``, if names or shapes do not fit.
    """
    network, info = kind.from_pretrained(None, config=config, state_dict=dict(state), output_loading_info=True, **how)
    _check_fit(info, reference, "missing_keys", "unexpected_keys", "mismatched_keys")
    return network.float().eval().requires_grad_(False)


def load_folder(kind: Any, source: str | Path, reference: str) -> Any:
    """The network of a class of transformers in a folder (or hub id), in the precision of its file, ready to score.

    Raises a `UserError`, which names the ``reference``, if a tensor is missing, which would stay random.
    """
    network, info = kind.from_pretrained(source, use_safetensors=True, output_loading_info=True)
    _check_fit(info, reference, "missing_keys", "mismatched_keys")
    return network.eval().requires_grad_(False)


def _check_fit(info: Mapping[str, Any], reference: str, *problems: str) -> None:
    for problem in problems:
        if found := sorted(map(str, info.get(problem) or ())):
            raise UserError(f"{reference} does not fit the network: {problem.replace('_', ' ')} such as {found[0]}")
