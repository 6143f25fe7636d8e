"""Coefficients of the Runge–Kutta methods: order conditions, and the numbers of torchdiffeq."""

import importlib
import math

import pytest
import torch

from sit_atconv.flow.tableaus import ADAPTIVE, FIXED_STEP

TABLEAUS = {**FIXED_STEP, **ADAPTIVE}


@pytest.mark.parametrize("name", TABLEAUS)
def test_tableau_is_consistent(name):
    tableau = TABLEAUS[name]
    assert len(tableau.a) == len(tableau.b) == len(tableau.c)
    assert sum(tableau.b) == pytest.approx(1)
    assert sum(b * c for b, c in zip(tableau.b, tableau.c, strict=True)) == pytest.approx(
        0.5 if tableau.order > 1 else 0
    )
    for row, c in zip(tableau.a, tableau.c, strict=True):
        assert sum(row) == pytest.approx(c)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_embedded_solution_is_one_order_lower(name):
    tableau = ADAPTIVE[name]
    b = [b - error for b, error in zip((*tableau.b, 0.0), tableau.b_error, strict=True)]
    c = (*tableau.c, 1.0)
    for power in range(tableau.order - 1):
        assert sum(b_i * c_i**power for b_i, c_i in zip(b, c, strict=True)) == pytest.approx(1 / (power + 1), abs=1e-12)
    power = tableau.order - 1
    assert sum(b_i * c_i**power for b_i, c_i in zip(b, c, strict=True)) != pytest.approx(1 / (power + 1), abs=1e-4)


@pytest.mark.parametrize("name", TABLEAUS)
def test_order_conditions(name):
    """Quadrature, Σ b·cᵏ = 1/(k + 1), and tall trees, Σ b·Aᵏ·1 = 1/(k + 1)!, hold up to the order and no further."""
    tableau = TABLEAUS[name]
    b, c = torch.tensor(tableau.b, dtype=torch.float64), torch.tensor(tableau.c, dtype=torch.float64)
    a = torch.zeros(len(b), len(b), dtype=torch.float64)
    for i, row in enumerate(tableau.a):
        a[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    tall_tree = torch.ones_like(b)
    for k in range(tableau.order):
        assert (b @ c**k).item() == pytest.approx(1 / (k + 1), abs=1e-13)
        assert (b @ tall_tree).item() == pytest.approx(1 / math.factorial(k + 1), abs=1e-13)
        tall_tree = a @ tall_tree
    assert (b @ tall_tree).item() != pytest.approx(1 / math.factorial(tableau.order + 1), rel=1e-4)


@pytest.mark.parametrize("name", ["bosh3", "dopri8"])
def test_coefficients_are_those_of_torchdiffeq(name):
    """Bit for bit. (Its dopri5, Heun and Fehlberg pairs estimate the error by other embedded solutions.)"""
    tableau = ADAPTIVE[name]
    method = importlib.import_module(f"torchdiffeq._impl.{name}")
    [reference] = [value for key, value in vars(method).items() if key.endswith("_TABLEAU")]
    assert reference.alpha.tolist() == [*tableau.c[1:], 1.0]
    assert [row.tolist() for row in reference.beta] == [*map(list, tableau.a[1:]), list(tableau.b)]
    assert reference.c_sol.tolist() == [*tableau.b, 0.0]
    assert reference.c_error.tolist() == list(tableau.b_error)
