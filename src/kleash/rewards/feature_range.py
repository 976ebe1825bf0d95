"""Distance of a response from a reward model's training responses, in the features of its score.

A reward model's score is a linear function of its last state. Where that state is far from those in training the score
is unreliable, however high it is; the distance shows this from one forward pass, without labels.

The distance is Mahalanobis' (Lee et al. 2018, arXiv:1807.03888, eq. 2, one class): √((f − μ)ᵀ Σ⁻¹ (f − μ)). Left out:
classes (a reward model has none) and other layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from kleash.io import replacing

FILE = "features.safetensors"
QUANTILE = 0.99
"""Share of responses of the training distribution that lie within the threshold."""


@dataclass(frozen=True)
class FeatureRange:
    """Where the training responses lie in feature space."""

    mean: Float[Tensor, " D"]
    whiten: Float[Tensor, "D D"]
    """Σ^(−½): features minus the mean, times this, have unit covariance."""
    threshold: float
    """Distance beyond which one response in a hundred of the training distribution lies."""

    @classmethod
    def fit(cls, features: Float[Tensor, "N D"], *, held_out: Float[Tensor, "M D"] | None) -> FeatureRange:
        """Measure a training distribution.

        Args:
            features: of training responses; N may be less than D.
            held_out: of responses that the model was not trained on; they set the threshold. Where it is None or
                empty the training responses do, which lie closer to their own mean and set it too low.
        """
        mean = features.double().mean(0)
        values, vectors = torch.linalg.eigh(shrunk_covariance(features.double() - mean))
        # Constant features have no scale; the floor keeps their inverse finite.
        scale = values.clamp_min(max(float(values.max()) * 1e-10, 1e-12)).rsqrt()
        whiten = (vectors * scale) @ vectors.T
        bare = cls(mean.float(), whiten.float(), float("inf"))
        sample = features if held_out is None or not len(held_out) else held_out
        return cls(bare.mean, bare.whiten, float(bare.distance(sample).double().quantile(QUANTILE)))

    def distance(self, features: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        """Mahalanobis distance of each from the training mean; about √D within the training distribution."""
        return ((features.float() - self.mean) @ self.whiten).norm(dim=-1)

    def save(self, folder: Path) -> None:
        """Write `features.safetensors`, atomically."""
        tensors = {
            "mean": self.mean,
            "whiten": self.whiten,
            "threshold": torch.tensor(self.threshold, dtype=torch.float64),
        }
        with replacing(folder / FILE) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)

    @classmethod
    def load(cls, folder: Path) -> FeatureRange | None:
        """Read what `save` wrote; None where there is no such file."""
        if not (folder / FILE).is_file():
            return None
        tensors = load_file(folder / FILE)
        return cls(tensors["mean"], tensors["whiten"], float(tensors["threshold"]))


def shrunk_covariance(centred: Float[Tensor, "N D"]) -> Float[Tensor, "D D"]:
    """Covariance shrunk towards a multiple of the identity by as much as it is noise (Ledoit & Wolf 2004, lemma 3.1).

    With fewer responses than dimensions the sample covariance has no inverse, and with slightly more its inverse is
    mostly noise.

    Args:
        centred: features minus their mean.
    """
    n, d = centred.shape
    covariance = centred.T @ centred / n
    scale = covariance.trace() / d
    target = scale * torch.eye(d, dtype=centred.dtype)
    spread = (covariance - target).square().sum()
    # Σ‖x xᵀ − S‖² = Σ‖x‖⁴ − n‖S‖², so that no [N, D, D] is ever held.
    noise = (centred.square().sum(1).square().sum() / n - covariance.square().sum()) / n
    weight = float((noise / spread).clamp(0, 1)) if spread > 0 else 1.0
    return weight * target + (1 - weight) * covariance
