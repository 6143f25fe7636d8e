"""Stochastic interpolants (arXiv 2303.08797, 2401.08740): a path from noise to data, and what a network predicts on it.

x_0 noise of standard deviation s, x_1 data, t in [0, 1] with t=0 noise, t=1 data.
    x_t = alpha(t)·x_1 + sigma(t)·x_0,   velocity = d_alpha(t)·x_1 + d_sigma(t)·x_0,   score = −x_0 / (sigma(t)·s²)
s is 1 unless `noise_scale` says otherwise. Coefficients have the shape of t: () or (B,). Any two of x_t, velocity,
score, noise and data determine the others; the conversions below are written so that they stay finite wherever the
quantity itself is.
"""

import math

import torch

from ..utils.checks import check_choice, check_positive
from .choices import check_noise_scale
from .paths import PATHS

PREDICTIONS = ("velocity", "score", "noise", "data")
DIFFUSION_FORMS = ("constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing")


class Interpolant:
    """A path between noise and data, and the quantity that a network predicts on it: pure mathematics, no network.

    Args:
        path: "linear", "gvp" or "vp".
        prediction: "velocity", "score", "noise" or "data".
        noise_scale: standard deviation of the noise x_0. A larger one suits larger images, whose pixels resemble their
            neighbours (JiT, arXiv 2511.13720). Not for score prediction.

    Raises:
        ValueError: if the path or the prediction is unknown, or the noise cannot have this scale.
    """

    def __init__(self, path: str = "linear", prediction: str = "velocity", noise_scale: float = 1.0):
        check_choice("path", path, PATHS)
        check_choice("prediction", prediction, PREDICTIONS)
        check_noise_scale(noise_scale, prediction)
        self.path = path
        self.prediction = prediction
        self.noise_scale = noise_scale
        self._path = PATHS[path]()

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        """The coefficient of the data in x_t."""
        return self._path.alpha(t)

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """The coefficient of the noise in x_t."""
        return self._path.sigma(t)

    def d_alpha(self, t: torch.Tensor) -> torch.Tensor:
        """The time derivative of alpha."""
        return self._path.d_alpha(t)

    def d_sigma(self, t: torch.Tensor) -> torch.Tensor:
        """The time derivative of sigma."""
        return self._path.d_sigma(t)

    def determinant(self, t: torch.Tensor) -> torch.Tensor:
        """alpha·d_sigma − sigma·d_alpha: an error of the data is one of the velocity times this over sigma."""
        return self._path.determinant(t)

    def interpolate(self, x_0: torch.Tensor, x_1: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t = alpha·x_1 + sigma·x_0, for noise x_0 and data x_1 (B, …) and t () or (B,)."""
        t = expand_like(t, x_1)
        return self.alpha(t) * x_1 + self.sigma(t) * x_0

    def velocity(self, x_0: torch.Tensor, x_1: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The time derivative of x_t: d_alpha·x_1 + d_sigma·x_0."""
        t = expand_like(t, x_1)
        return self.d_alpha(t) * x_1 + self.d_sigma(t) * x_0

    def target(self, x_0: torch.Tensor, x_1: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the network should return at x_t: the velocity, score, noise or data, depending on `prediction`."""
        if self.prediction == "velocity":
            return self.velocity(x_0, x_1, t)
        if self.prediction == "score":
            return -x_0 / self.sigma(expand_like(t, x_0))
        return x_0 if self.prediction == "noise" else x_1

    def to_velocity(self, model_output: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The velocity of the probability flow ODE, from the network's output at x_t (B, …) and t."""
        if self.prediction == "velocity":
            return model_output
        t = expand_like(t, x_t)
        path = self._path
        if self.prediction == "data":
            sigma = path.sigma(t)
            return (path.d_sigma(t) * x_t - path.determinant(t) * model_output) / sigma
        if self.prediction == "noise":
            return (path.d_alpha(t) * x_t + path.determinant(t) * model_output) / path.alpha(t)
        return (path.d_alpha(t) * x_t - path.sigma_determinant(t) * model_output) / path.alpha(t)

    def to_score(self, model_output: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The score ∇ log p_t(x_t)."""
        if self.prediction == "score":
            return model_output
        t = expand_like(t, x_t)
        path, variance = self._path, self.noise_scale**2
        if self.prediction == "velocity":
            scale = path.sigma_determinant(t) * variance
            return (path.d_alpha(t) * x_t - path.alpha(t) * model_output) / scale
        if self.prediction == "noise":
            return -model_output / (path.sigma(t) * variance)
        return (path.alpha(t) * model_output - x_t) / (path.sigma(t) ** 2 * variance)

    def to_noise(self, model_output: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The expected noise E[x_0 | x_t]."""
        if self.prediction == "noise":
            return model_output
        t = expand_like(t, x_t)
        if self.prediction == "velocity":
            a, b = self._path.noise_from_velocity(t)
            return a * x_t + b * model_output
        if self.prediction == "score":
            return -self.sigma(t) * model_output
        return (x_t - self.alpha(t) * model_output) / self.sigma(t)

    def to_data(self, model_output: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The expected data E[x_1 | x_t]."""
        if self.prediction == "data":
            return model_output
        t = expand_like(t, x_t)
        if self.prediction == "velocity":
            a, b = self._path.data_from_velocity(t)
            return a * x_t + b * model_output
        if self.prediction == "score":
            return (x_t + self.sigma(t) ** 2 * model_output) / self.alpha(t)
        return (x_t - self.sigma(t) * model_output) / self.alpha(t)

    def diffusion(self, t: torch.Tensor, form: str = "sigma", norm: float = 1.0) -> torch.Tensor:
        """The diffusion coefficient w(t) of the SDE dX = (velocity + w·score) dt + sqrt(2w) dW; shape of t.

        Args:
            t: times.
            form: "constant", "sbdm", "sigma", "linear", "decreasing" or "increasing-decreasing". "sbdm" is the w of a
                score-based diffusion model, which depends on the path; all others but "sigma" depend on t alone.
            norm: scale of w.

        Raises:
            ValueError: if the form is unknown or the norm is not positive.
        """
        check_choice("diffusion_form", form, DIFFUSION_FORMS)
        check_positive("diffusion_norm", norm)
        if form == "constant":
            return torch.full_like(t, norm)
        if form == "sbdm":
            return -norm * self._path.sigma_determinant(t) / self.alpha(t)
        if form == "sigma":
            return norm * self.sigma(t)
        if form == "linear":
            return norm * (1 - t)
        if form == "decreasing":
            return 0.25 * (norm * torch.cos(math.pi * t) + 1) ** 2
        return norm * torch.sin(math.pi * t) ** 2

    def time_interval(self, eps: float) -> tuple[float, float]:
        """The part of [0, 1] on which the prediction is finite: `eps` is cut from each end at which it is not."""
        cut_start = self.prediction != "velocity" and self.path != "vp"
        cut_end = self.prediction != "velocity" or self.path == "vp"
        return (eps if cut_start else 0.0), (1.0 - eps if cut_end else 1.0)

    def default_eps(self, training: bool) -> float:
        """The default of `eps`, as in SiT: 0 for velocity prediction on the linear and GVP paths."""
        if self.path == "vp":
            return 1e-5 if training else 1e-3
        return 0.0 if self.prediction == "velocity" else 1e-3


def expand_like(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Reshape t, () or (B,), so that it broadcasts over x (B, …) sample by sample."""
    return t.view(t.shape + (1,) * (x.ndim - t.ndim)) if t.ndim else t
