"""Log-likelihood of data under the probability flow ODE (arXiv 2011.13456, Section 4.3).

Along the ODE, d log p_t(x_t)/dt = −div velocity(x_t, t). log p(data) is therefore the log density of the noise to which
the data flows back, minus the integral of the divergence from noise to data.
"""

import math
from collections.abc import Callable

import torch

from ..schedulers.scheduling_interpolant_ode import InterpolantODEScheduler
from ..utils.checks import check_choice

DIVERGENCES = ("hutchinson", "exact")


def log_likelihood(
    scheduler: InterpolantODEScheduler,
    model_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x_1: torch.Tensor,
    num_inference_steps: int = 50,
    divergence: str = "hutchinson",
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The log density of data (B, C, H, W), from solving the ODE from data to noise together with its divergence.

    The Hutchinson probe is drawn once for the whole solve: the ODE stays deterministic and smooth, and adaptive solvers
    need no more network calls than for sampling. The function can be used under `torch.no_grad`.
    `scheduler.num_model_calls` is the number of network calls afterwards.

    Args:
        scheduler: the scheduler, whose solver and path are used.
        model_fn: (x, t) -> raw output of the network, differentiable in x.
        x_1: data, float32; log densities refer to its units.
        num_inference_steps: number of steps of a fixed-step solver.
        divergence: "hutchinson" for an unbiased estimate from one Rademacher probe per sample, which costs one backward
            pass per network call; "exact" for the trace, which costs C·H·W backward passes and suits small data.
        generator: random number generator of the probe.

    Returns:
        (log p, latents): log densities (B,) float32 in nats, and the noise (B, C, H, W) to which the data flows back.

    Raises:
        ValueError: if the divergence is unknown, or `InterpolantODEScheduler.solve` refuses an argument.
    """
    check_choice("divergence", divergence, DIVERGENCES)
    scheduler.check_state(x_1, num_inference_steps)
    B, dims = len(x_1), x_1[0].numel()
    device = generator.device if generator is not None else x_1.device
    signs = torch.randint(0, 2, x_1.shape, generator=generator, device=device).to(x_1)
    probe = signs * 2 - 1  # Rademacher, the probe with the smallest variance
    counted = scheduler.counting_calls(model_fn)

    def joint_velocity(state: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The velocity of the state (B, dims + 1): x, and the integral of the divergence so far."""
        with torch.enable_grad():
            x = state[:, :-1].detach().view_as(x_1).requires_grad_()
            velocity = scheduler.interpolant.to_velocity(counted(x, t), x, t)
            if divergence == "hutchinson":
                [product] = torch.autograd.grad(velocity, x, probe)  # probeᵀ·∂velocity/∂x
                trace = (product * probe).flatten(1).sum(1)
            else:
                flat = velocity.flatten(1)
                trace = torch.zeros(B, dtype=x.dtype, device=x.device)
                for i in range(dims):
                    [row] = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=i < dims - 1)
                    trace = trace + row.flatten(1)[:, i]
        return torch.cat([velocity.detach().flatten(1), trace.detach()[:, None]], dim=1)

    state = torch.cat([x_1.flatten(1), torch.zeros_like(x_1.flatten(1)[:, :1])], dim=1)
    state = scheduler.integrate(joint_velocity, state, num_inference_steps, reverse=True)
    latents, collected = state[:, :-1], state[:, -1]  # collected: the integral of the divergence from t=1 to t=0
    variance = scheduler.interpolant.noise_scale**2
    log_noise = -0.5 * latents.square().sum(1) / variance - 0.5 * dims * math.log(2 * math.pi * variance)
    return log_noise + collected, latents.view_as(x_1)


def bits_per_dimension(log_p: torch.Tensor, dims: int, levels: int = 256, data_range: float = 2.0) -> torch.Tensor:
    """Convert log densities (B,) in nats to bits per dimension.

    Args:
        log_p: log densities.
        dims: number of dimensions of one sample, C·H·W.
        levels: number of grey levels of the data.
        data_range: difference of the largest and the smallest value of the data; 2 for data in [−1, 1].
    """
    bin_width = data_range / (levels - 1)
    return -log_p / (dims * math.log(2)) - math.log2(bin_width)
