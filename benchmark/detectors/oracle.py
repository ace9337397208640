"""The testbed's oracle: a small network trained on the drawn world, with measured error rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from overpaint.detectors.detector import Detector
from overpaint.errors import AssetMissing
from overpaint.grid.shipped import shipped
from overpaint.run.store import file_hash

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.testbed.oracle import Oracle


@dataclass(kw_only=True)
class OracleDetector(Detector):
    """Scores every label of the testbed; ``which`` selects one of two independently trained networks.

    Images of another size than the world's are resized first. The measured error rates hold for the world's own size.
    """

    which: Literal["a", "b"]

    @property
    def labels(self) -> Sequence[str]:
        from overpaint.testbed.canvas import STYLES
        from overpaint.testbed.world import LABELLED

        return [*LABELLED, *STYLES]

    def assets(self) -> dict[str, str]:
        name = "oracle.safetensors" if self.which == "a" else f"oracle_{self.which}.safetensors"
        path = shipped("datasets") / "testbed" / "oracle" / name
        if not path.is_file():
            raise AssetMissing(f"{path} is missing: scripts/train_testbed.py makes it")
        return {name: file_hash(path)}

    def score(self, images: Sequence[Image]) -> pd.DataFrame:
        from overpaint.testbed.canvas import SIZE

        size = (SIZE, SIZE)
        probabilities, features = self._oracle.predict([i if i.size == size else i.resize(size) for i in images])
        frame = pd.DataFrame(np.asarray(probabilities, dtype=np.float32), columns=self._oracle.labels)
        frame["features"] = [row.tolist() for row in np.asarray(features, dtype=np.float32)]
        frame["failed"] = ~np.isfinite(probabilities).all(axis=1)
        return frame

    @cached_property
    def _oracle(self) -> Oracle:
        from overpaint.testbed.oracle import load_oracle

        return load_oracle(shipped("datasets") / "testbed" / "oracle", self.which)
