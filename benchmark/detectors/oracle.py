"""The testbed's oracle: a small network trained on the drawn world, whose error rates are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from overpaint.detectors.detector import Detector
from overpaint.errors import AssetMissing
from overpaint.grid.shipped import shipped
from overpaint.run.store import file_hash


@dataclass
class OracleDetector(Detector):
    """Scores every label of the testbed; ``which`` picks one of two independently trained networks.

    Pictures of another size than the world's are brought to it first; the error rates are those at its own.
    """

    which: Literal["a", "b"] = "a"

    def assets(self) -> dict[str, str]:
        name = "oracle.safetensors" if self.which == "a" else f"oracle_{self.which}.safetensors"
        path = shipped("datasets") / "testbed" / "oracle" / name
        if not path.is_file():
            raise AssetMissing(f"{path} is missing: scripts/train_testbed.py makes it")
        return {name: file_hash(path)}

    def score(self, images) -> pd.DataFrame:
        from overpaint.testbed.canvas import SIZE
        from overpaint.testbed.oracle import load_oracle

        oracle = load_oracle(shipped("datasets") / "testbed" / "oracle", self.which)
        size = (SIZE, SIZE)
        probabilities, features = oracle.predict([i if i.size == size else i.resize(size) for i in images])
        frame = pd.DataFrame(np.asarray(probabilities, dtype=np.float32), columns=oracle.labels)
        frame["features"] = [row.tolist() for row in np.asarray(features, dtype=np.float32)]
        frame["failed"] = ~np.isfinite(probabilities).all(axis=1)
        return frame
