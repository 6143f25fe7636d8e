"""Paths between noise and data: how much of each is in x_t at time t, and how that changes.

x_0 noise, x_1 data, t in [0, 1] with t=0 noise, t=1 data; x_t = alpha(t)·x_1 + sigma(t)·x_0. All functions keep the
shape of t. They are written so that they stay finite wherever the quantity itself is.
"""

import math

import torch


class InterpolantPath:
    """What every path defines. The velocity is d_alpha(t)·x_1 + d_sigma(t)·x_0."""

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        """The coefficient of the data in x_t."""
        raise NotImplementedError

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """The coefficient of the noise in x_t."""
        raise NotImplementedError

    def d_alpha(self, t: torch.Tensor) -> torch.Tensor:
        """The time derivative of alpha."""
        raise NotImplementedError

    def d_sigma(self, t: torch.Tensor) -> torch.Tensor:
        """The time derivative of sigma."""
        raise NotImplementedError

    def determinant(self, t: torch.Tensor) -> torch.Tensor:
        """alpha·d_sigma − sigma·d_alpha, the determinant of (x_1, x_0) -> (x_t, velocity)."""
        raise NotImplementedError

    def sigma_determinant(self, t: torch.Tensor) -> torch.Tensor:
        """sigma·determinant, which is finite where d_sigma is not."""
        raise NotImplementedError

    def noise_from_velocity(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(a, b) with x_0 = a·x_t + b·velocity."""
        raise NotImplementedError

    def data_from_velocity(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(a, b) with x_1 = a·x_t + b·velocity."""
        raise NotImplementedError


class LinearPath(InterpolantPath):
    """alpha = t, sigma = 1 − t: the straight path of rectified flow (arXiv 2209.03003)."""

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        return t

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        return 1 - t

    def d_alpha(self, t: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(t)

    def d_sigma(self, t: torch.Tensor) -> torch.Tensor:
        return -torch.ones_like(t)

    def determinant(self, t: torch.Tensor) -> torch.Tensor:
        return -torch.ones_like(t)

    def sigma_determinant(self, t: torch.Tensor) -> torch.Tensor:
        return t - 1

    def noise_from_velocity(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones_like(t), -t

    def data_from_velocity(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones_like(t), 1 - t


class GVPPath(InterpolantPath):
    """alpha = sin(πt/2), sigma = cos(πt/2): a path on which alpha² + sigma² stays one."""

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(t * (math.pi / 2))

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        return torch.sin((1 - t) * (math.pi / 2))  # exactly 0 at t=1, where cos(π/2) in floating point is not

    def d_alpha(self, t: torch.Tensor) -> torch.Tensor:
        return self.sigma(t) * (math.pi / 2)

    def d_sigma(self, t: torch.Tensor) -> torch.Tensor:
        return self.alpha(t) * (-math.pi / 2)

    def determinant(self, t: torch.Tensor) -> torch.Tensor:
        return torch.full_like(t, -math.pi / 2)

    def sigma_determinant(self, t: torch.Tensor) -> torch.Tensor:
        return self.sigma(t) * (-math.pi / 2)

    def noise_from_velocity(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.sigma(t), self.alpha(t) * (-2 / math.pi)

    def data_from_velocity(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.alpha(t), self.sigma(t) * (2 / math.pi)


class VPPath(InterpolantPath):
    """The variance-preserving diffusion of score SDEs (arXiv 2011.13456) with beta from 0.1 to 20, reversed in time."""

    beta_min = 0.1
    beta_max = 20.0

    def log_alpha(self, t: torch.Tensor) -> torch.Tensor:
        return -0.25 * (1 - t) ** 2 * (self.beta_max - self.beta_min) - 0.5 * (1 - t) * self.beta_min

    def d_log_alpha(self, t: torch.Tensor) -> torch.Tensor:
        return 0.5 * (1 - t) * (self.beta_max - self.beta_min) + 0.5 * self.beta_min

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()  # expm1: 1 − alpha² loses every digit near t=1

    def d_alpha(self, t: torch.Tensor) -> torch.Tensor:
        return self.alpha(t) * self.d_log_alpha(t)

    def d_sigma(self, t: torch.Tensor) -> torch.Tensor:
        return -(self.alpha(t) ** 2) * self.d_log_alpha(t) / self.sigma(t)

    def determinant(self, t: torch.Tensor) -> torch.Tensor:
        return self.sigma_determinant(t) / self.sigma(t)

    def sigma_determinant(self, t: torch.Tensor) -> torch.Tensor:
        # sigma·(alpha·d_sigma − sigma·d_alpha) = −d_alpha·(alpha² + sigma²), and the bracket is one
        return -self.d_alpha(t)

    def noise_from_velocity(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.sigma(t), -self.sigma(t) / self.d_log_alpha(t)

    def data_from_velocity(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.alpha(t), self.sigma(t) ** 2 / self.d_alpha(t)


PATHS: dict[str, type[InterpolantPath]] = {"linear": LinearPath, "gvp": GVPPath, "vp": VPPath}
