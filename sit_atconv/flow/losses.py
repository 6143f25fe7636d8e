"""The training objective: regress the interpolant's target at a random time (SiT, arXiv 2401.08740, Section 2)."""

from collections.abc import Callable

import torch

from ..utils.checks import check_choice, check_eps, check_positive
from .callbacks import check_output
from .choices import TIME_SAMPLINGS, WEIGHTINGS, check_sigma_floor, check_time_options
from .interpolants import Interpolant, expand_like


class InterpolantLoss:
    """The squared error of a network's prediction, averaged over the elements of each sample.

    Args:
        interpolant: the path and the prediction.
        weighting: "none" is the plain error (of sigma·score for score prediction, so that it stays finite);
            "velocity" weights it as if the velocity had been regressed; "likelihood" gives the bound on the
            log-likelihood. Velocity prediction supports "none" only.
        time_sampling: "uniform", or "logit-normal" (SD3, arXiv 2403.03206), which favours the middle.
        time_shift: resolution shift of SD3, which moves times towards noise: the odds t / (1 − t) are divided by it. 1
            applies no shift.
        train_eps: time cut from each end of [0, 1] at which the target is not finite. If None,
            `Interpolant.default_eps`.
        time_mean, time_std: mean and standard deviation of the logit of "logit-normal" times; a mean below 0 moves them
            towards noise. (−0.8, 0.8) is that of JiT (arXiv 2511.13720).
        sigma_floor: the least sigma(t) by which weighting "velocity" divides the error of data prediction, so that its
            weight stays bounded near the data; 0.05 in JiT, 0 for none. Not on path "vp", whose velocity has no bound.

    Raises:
        ValueError: if a choice is unknown, a number is out of range, velocity prediction is given a weighting, or an
            option would have no effect.
    """

    def __init__(
        self,
        interpolant: Interpolant,
        weighting: str = "none",
        time_sampling: str = "uniform",
        time_shift: float = 1.0,
        train_eps: float | None = None,
        time_mean: float = 0.0,
        time_std: float = 1.0,
        sigma_floor: float = 0.0,
    ):
        check_choice("weighting", weighting, WEIGHTINGS)
        check_choice("time_sampling", time_sampling, TIME_SAMPLINGS)
        check_positive("time_shift", time_shift)
        if interpolant.prediction == "velocity" and weighting != "none":
            raise ValueError(
                f"weighting={weighting!r} applies to score, noise and data prediction; use 'none' for velocity"
            )
        check_time_options(time_sampling, time_mean, time_std)
        check_sigma_floor(sigma_floor, interpolant.path, interpolant.prediction, weighting)
        self.interpolant = interpolant
        self.weighting = weighting
        self.time_sampling = time_sampling
        self.time_shift = time_shift
        self.time_mean, self.time_std = time_mean, time_std
        self.sigma_floor = sigma_floor
        check_eps("train_eps", train_eps)
        eps = interpolant.default_eps(training=True) if train_eps is None else train_eps
        self.interval = interpolant.time_interval(eps)

    def sample_time(self, batch_size: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw training times: (B,) float32 on the device of the generator, or on the CPU without a generator."""
        device = generator.device if generator is not None else "cpu"
        return self.time_from_normal(torch.randn(batch_size, generator=generator, device=device))

    def time_from_normal(self, z: torch.Tensor) -> torch.Tensor:
        """Turn standard normal numbers z into training times of the chosen distribution, in the shape of z."""
        if self.time_sampling == "uniform":
            u = torch.special.ndtr(z)
        else:
            u = torch.sigmoid(self.time_mean + self.time_std * z)
        shifted = u / (u + self.time_shift * (1 - u))
        start, end = self.interval
        return start + (end - start) * shifted

    def __call__(
        self,
        model_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        x_1: torch.Tensor,
        x_0: torch.Tensor | None = None,
        t: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Compute the loss of data x_1 (B, …).

        Args:
            model_fn: (x_t, t) -> the network's raw output, like x_t.
            x_1: data.
            x_0: noise, like x_1. If None, drawn from a normal distribution with the interpolant's `noise_scale`.
            t: times (B,). If None, drawn by `sample_time`.
            generator: random generator of the times and the noise.

        Returns:
            (B,) float32.
        """
        x_1 = x_1.float()
        if t is None:
            t = self.sample_time(len(x_1), generator).to(x_1.device)
        if x_0 is None:
            device = generator.device if generator is not None else x_1.device
            noise = torch.randn(x_1.shape, generator=generator, device=device).to(x_1.device)
            x_0 = self.interpolant.noise_scale * noise
        x_t = self.interpolant.interpolate(x_0, x_1, t)
        return self.of_output(model_fn(x_t, t), x_0, x_1, t)

    def of_output(
        self, model_output: torch.Tensor, x_0: torch.Tensor, x_1: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss (B,) float32 of the network's output at x_t, interpolated between x_0 and x_1."""
        check_output(model_output, x_1)
        error = self._weighted_error(model_output.float(), x_0, x_1.float(), t)
        return error.square().flatten(1).mean(1)

    def weighted_difference(self, output: torch.Tensor, other: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The difference of two outputs of networks at the same x_t, (B, …), weighted as their errors are."""
        zeros = torch.zeros_like(output)  # errors are affine in the output, so that the target drops out
        return self._weighted_error(output, zeros, zeros, t) - self._weighted_error(other, zeros, zeros, t)

    def _weighted_error(
        self, model_output: torch.Tensor, x_0: torch.Tensor, x_1: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        interpolant = self.interpolant
        t = expand_like(t, x_1)
        if interpolant.prediction == "velocity":
            return model_output - interpolant.velocity(x_0, x_1, t)
        sigma = interpolant.sigma(t)
        if interpolant.prediction == "score":
            error = sigma * model_output + x_0
        elif interpolant.prediction == "noise":
            error = model_output - x_0
        else:
            error = model_output - x_1
        if self.weighting == "none":
            return error
        if self.sigma_floor:
            return error * interpolant.determinant(t) / sigma.clamp(min=self.sigma_floor)
        if interpolant.prediction == "data":
            error = error * interpolant.alpha(t) / sigma  # the error of the noise that the predicted data implies
        w = interpolant.diffusion(t, "sbdm")
        return error * (w / sigma if self.weighting == "velocity" else w.sqrt() / (sigma * interpolant.noise_scale))
