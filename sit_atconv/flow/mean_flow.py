"""MeanFlow (arXiv 2505.13447): a network learns the mean velocity of a whole step, so that one call makes the step.

t=0 noise, t=1 data; a step leads from t to s ≥ t. x, v and u (B, …), t and s (B,).
    u(x_t, t, s) = 1/(s − t) ∫ v(x_τ, τ) dτ from t to s,   x_s = x_t + (s − t)·u(x_t, t, s),   u(x_t, t, t) = v(x_t, t)
The derivative of (s − t)·u by t along the flow gives the identity that training makes hold, without an integral:
    u = v + (s − t)·du/dt,   du/dt = ∂u/∂x·v + ∂u/∂t
"""

import warnings
from collections.abc import Callable
from typing import Protocol

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..utils.checks import check_choice, check_non_negative, check_positive, check_share, is_number
from .callbacks import check_output
from .interpolants import Interpolant, expand_like
from .losses import InterpolantLoss

DERIVATIVES = ("jvp", "difference")
VELOCITIES = ("data", "model", "teacher")
HALF_DIFFERENCE = 1e-3  # of time: float32 then errs by about as much as the quotient itself
WEIGHT_OFFSET = 1e-3  # bounds the weights of the adaptive power, as in the paper

MeanVelocityFn = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # (x, t, s) -> u


class BoundNetwork(Protocol):
    """A network with its labels bound, without gradients: `network(x, t, s, rows)` -> u (…, like x), float32.

    `rows` are the rows of the batch that x, t and s are; with `unconditional`, their labels are dropped.
    """

    def __call__(
        self, x: torch.Tensor, t: torch.Tensor, s: torch.Tensor, rows: torch.Tensor | slice, unconditional: bool = False
    ) -> torch.Tensor: ...


def total_derivative(
    mean_velocity: MeanVelocityFn,
    x: torch.Tensor,
    t: torch.Tensor,
    s: torch.Tensor,
    velocity: torch.Tensor,
    derivative: str = "jvp",
) -> torch.Tensor:
    """Compute du/dt = ∂u/∂x·v + ∂u/∂t of u = mean_velocity(x, t, s), like x, without gradients.

    Args:
        mean_velocity: (x, t, s) -> u; the plain network, without a wrapper of accelerate or DDP. Compiled blocks run
            without the compiler, which knows no forward-mode derivatives.
        x: x_t (B, …).
        t: times (B,).
        s: ends of the steps (B,), which stay where they are.
        velocity: v, like x.
        derivative: "jvp", exact, in forward mode; or "difference", a central difference quotient, with two calls.

    Raises:
        ValueError: if derivative is "difference" in half precision, where the quotient is mostly rounding.
    """
    check_choice("derivative", derivative, DERIVATIVES)
    # Forward mode has no rule for fused attention, but for its definition.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
        if derivative == "jvp":
            tangents = (velocity, torch.ones_like(t))
            with warnings.catch_warnings():  # of PyTorch about its own code, as it prepares the first derivative
                warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
                return torch.func.jvp(lambda x, t: mean_velocity(x, t, s), (x, t), tangents)[1]
        if torch.is_autocast_enabled(x.device.type) or x.dtype not in (torch.float32, torch.float64):
            raise ValueError("derivative='difference' needs float32, since half precision rounds it away; use 'jvp'")
        h = HALF_DIFFERENCE
        later, earlier = (mean_velocity(x + step * velocity, t + step, s) for step in (h, -h))
        return (later - earlier) / (2 * h)


class MeanFlowLoss:
    """The squared error of a network's mean velocity against its target by MeanFlow's identity.

    Steps with s > t, the spans, need the derivative of the network; the others are trained as a flow.

    Args:
        interpolant: the path, which must be linear, with velocity prediction.
        velocity: what stands for v: "data", the velocity between noise and image (MeanFlow); "model", the same in the
            target, but the derivative follows the network's own velocity, which is no longer random (improved MeanFlow,
            arXiv 2512.02012); "teacher", that of a trained flow.
        derivative: see `total_derivative`.
        time_sampling, time_shift, time_mean, time_std: distribution of the times, see `InterpolantLoss`. The two times
            of a span are drawn from it and ordered.
        data_end_share: share of the spans that end at s = 1, where the data is.
        adaptive_power: p in the weight 1/(error + 10⁻³)^p of each sample; 0 for none.
        guidance_scale: scale of the classifier-free guidance that is built into the target; 1 for none.
        guidance_mix: κ in [0, 1), the weight of the conditional prediction in a guided velocity without a teacher:
            (1 − κ)·scale·v + κ·u(x, t, t) + (1 − κ·(1 − scale) − scale)·u(x, t, t without label), Equation 21 of
            arXiv 2505.13447. If None, 1 − 1/scale, which leaves v its weight 1 (arXiv 2512.02012).

    Raises:
        ValueError: if a choice is unknown, a number out of range, or the path not linear.
    """

    def __init__(
        self,
        interpolant: Interpolant,
        velocity: str = "model",
        derivative: str = "jvp",
        time_sampling: str = "uniform",
        time_shift: float = 1.0,
        data_end_share: float = 0.0,
        adaptive_power: float = 0.0,
        guidance_scale: float = 1.0,
        guidance_mix: float | None = None,
        time_mean: float = 0.0,
        time_std: float = 1.0,
    ):
        if (interpolant.path, interpolant.prediction) != ("linear", "velocity"):
            raise ValueError(
                f"path={interpolant.path}, prediction={interpolant.prediction}: MeanFlow is trained on the linear path "
                "with velocity prediction"
            )
        check_choice("velocity", velocity, VELOCITIES)
        check_choice("derivative", derivative, DERIVATIVES)
        check_share("data_end_share", data_end_share)
        check_non_negative("adaptive_power", adaptive_power)
        check_positive("guidance_scale", guidance_scale)
        if guidance_mix is not None and not (is_number(guidance_mix) and 0 <= guidance_mix < 1):
            raise ValueError(f"guidance_mix={guidance_mix!r} must be in [0, 1), or None")
        self.flow = InterpolantLoss(
            interpolant, "none", time_sampling, time_shift, time_mean=time_mean, time_std=time_std
        )
        self.velocity = velocity
        self.derivative = derivative
        self.data_end_share = data_end_share
        self.adaptive_power = adaptive_power
        self.guidance_scale = guidance_scale
        self.guidance_mix = guidance_mix

    def times_from_normal(
        self, z: torch.Tensor, z_end: torch.Tensor, is_span: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn standard normal numbers into times t and ends s ≥ t, each (B,), with s = t where not `is_span`."""
        times = self.flow.time_from_normal
        t, u = times(z), torch.special.ndtr(z_end)
        # What is left of u is uniform again.
        rest = ((u - self.data_end_share) / (1 - self.data_end_share or 1)).clamp(1e-7, 1 - 1e-7)
        s = torch.where(u < self.data_end_share, torch.ones_like(t), times(torch.special.ndtri(rest)))
        return torch.where(is_span, torch.minimum(t, s), t), torch.where(is_span, torch.maximum(t, s), t)

    def __call__(
        self,
        model_fn: MeanVelocityFn,
        network: BoundNetwork,
        x_1: torch.Tensor,
        x_0: torch.Tensor,
        t: torch.Tensor,
        s: torch.Tensor,
        spans: torch.Tensor,
        guided: torch.Tensor | None = None,
        teacher: BoundNetwork | None = None,
    ) -> torch.Tensor:
        """Compute the squared error of the mean velocities between noise x_0 and data x_1 (B, …).

        Args:
            model_fn: (x_t, t, s) -> u, with gradients.
            network: the same network for targets, without wrappers and gradients.
            x_1: data.
            x_0: noise, like x_1.
            t: times (B,).
            s: ends (B,).
            spans: the rows with s > t, (number,) whole numbers.
            guided: (B,) bool, the rows to whose target guidance applies. If None, no row.
            teacher: the trained flow, for velocity "teacher".

        Returns:
            (B,) float32, not yet weighted: see `weights`.
        """
        x_1 = x_1.float()
        x_t = self.flow.interpolant.interpolate(x_0, x_1, t)
        target = self.target(network, x_1, x_0, t, s, spans, guided, teacher)
        u = model_fn(x_t, t, s)
        check_output(u, x_1)
        return (u.float() - target).square().flatten(1).mean(1)

    def weights(self, errors: torch.Tensor) -> torch.Tensor:
        """The weights (B,) of the samples with these errors, without gradients."""
        return (errors.detach() + WEIGHT_OFFSET) ** -self.adaptive_power

    @torch.no_grad()
    def target(
        self,
        network: BoundNetwork,
        x_1: torch.Tensor,
        x_0: torch.Tensor,
        t: torch.Tensor,
        s: torch.Tensor,
        spans: torch.Tensor,
        guided: torch.Tensor | None = None,
        teacher: BoundNetwork | None = None,
    ) -> torch.Tensor:
        """What u should be, v + (s − t)·du/dt, like x_1; arguments as for `__call__`."""
        x_t = self.flow.interpolant.interpolate(x_0, x_1, t)
        with torch.compiler.set_stance("force_eager"):
            v, v_spans = self._velocities(network, x_1, x_0, x_t, t, spans, guided, teacher)
            if not len(spans):
                return v
            derivative = total_derivative(
                lambda x, t, s: network(x, t, s, spans), x_t[spans], t[spans], s[spans], v_spans, self.derivative
            )
        return v.index_add(0, spans, expand_like(s - t, x_t)[spans] * derivative)

    def _velocities(
        self,
        network: BoundNetwork,
        x_1: torch.Tensor,
        x_0: torch.Tensor,
        x_t: torch.Tensor,
        t: torch.Tensor,
        spans: torch.Tensor,
        guided: torch.Tensor | None,
        teacher: BoundNetwork | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The velocities v (B, …) in the target, and those along which the spans are differentiated (number, …)."""
        rows, scale = slice(None), self.guidance_scale
        if self.velocity == "teacher":
            assert teacher is not None
            v = teacher(x_t, t, t, rows)
            if guided is not None and scale != 1:
                weak = teacher(x_t, t, t, rows, unconditional=True)
                v = torch.where(expand_like(guided, v), torch.lerp(weak, v, scale), v)
            return v, v[spans]
        v = self.flow.interpolant.velocity(x_0, x_1, t)
        if guided is None or scale == 1:
            if self.velocity == "data" or not len(spans):  # convolutions refuse an empty batch
                return v, v[spans]
            return v, network(x_t[spans], t[spans], t[spans], spans)
        mix = 1 - 1 / scale if self.guidance_mix is None else self.guidance_mix
        weight = (1 - mix) * scale
        cond, weak = network(x_t, t, t, rows), network(x_t, t, t, rows, unconditional=True)
        v = torch.where(expand_like(guided, v), weight * v + mix * cond + (1 - weight - mix) * weak, v)
        return v, (v if self.velocity == "data" else cond)[spans]


def is_span_at(positions: torch.Tensor, share: float) -> torch.Tensor:
    """Whether the samples at these positions of a run are spans: this share of any run of samples, evenly spread.

    A function of the position alone, so that it does not depend on the number of processes and accumulation steps.
    """
    spans_before, spans_after = ((count.double() * share).floor() for count in (positions, positions + 1))
    return spans_after > spans_before
