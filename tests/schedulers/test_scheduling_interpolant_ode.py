"""Sampling by the ODE against the reference's numbers and the closed form of Gaussian data."""

import itertools

import pytest
import torch
import torchdiffeq

from sit_atconv import Interpolant, InterpolantODEScheduler, InterpolantSDEScheduler
from sit_atconv.flow.choices import MULTISTEP
from sit_atconv.flow.interpolants import PREDICTIONS
from sit_atconv.flow.tableaus import ADAPTIVE, FIXED_STEP

PATHS = {"linear": "Linear", "gvp": "GVP", "vp": "VP"}  # ours: the reference's
NUM_POINTS = {"euler": 9, "midpoint": 9, "heun3": 9, "rk4": 5, "dopri5": 5}  # of the reference's grids
PARITY = [
    case
    for case in itertools.product(PATHS, ("velocity", "score", "noise"), NUM_POINTS)
    if case != ("vp", "noise", "dopri5")  # the reference does not solve this one
]
SOLVERS = [*FIXED_STEP, *ADAPTIVE, *MULTISTEP]


def parity_key(path: str, prediction: str, solver: str) -> str:
    return f"ode.{PATHS[path]}.{prediction}.{solver}.{NUM_POINTS[solver]}"


def closed_form(scheduler: InterpolantODEScheduler, latents: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """Where the flow of N(mean, std²) takes latents between the ends of the scheduler's grid."""
    interpolant, grid = scheduler.interpolant, scheduler.time_grid(1)
    alpha = interpolant.alpha(grid)
    spread = (alpha**2 * std**2 + interpolant.sigma(grid) ** 2).sqrt()
    return alpha[1] * mean + spread[1] / spread[0] * (latents - alpha[0] * mean)


@pytest.fixture(scope="module")
def latents():
    return torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("path", "prediction", "solver"), PARITY)
def test_parity(path, prediction, solver, transport, transport_model_fn, assert_close):
    num_points = NUM_POINTS[solver]
    scheduler = InterpolantODEScheduler(path, prediction, solver=solver)
    latents = scheduler.solve(transport_model_fn, transport["x0"], num_points - 1)
    # The reference's dopri5 steps beyond the end and interpolates back, with one step size for the whole batch: both
    # solutions are within rtol=1e-3 of the exact one, and no closer to each other.
    tolerance = 1e-3 if solver == "dopri5" else 1e-4
    assert_close(latents, transport[parity_key(path, prediction, solver)], tolerance)


def test_parity_covers_every_entry(transport):
    assert {parity_key(*case) for case in PARITY} == {key for key in transport if key.startswith("ode.")}


@pytest.mark.parametrize(("path", "prediction"), [case[:2] for case in PARITY if case[2] == "dopri5"])
def test_dopri5_entries_under_their_own_step_control(path, prediction, transport, transport_model_fn, assert_close):
    """With torchdiffeq's batch-wide steps our velocity on our time grid gives the reference's numbers; with our own
    steps the solution is nearer to the exact one than to those."""
    scheduler = InterpolantODEScheduler(path, prediction, solver="dopri5")
    expected = transport[parity_key(path, prediction, "dopri5")]

    def velocity(t, x):
        return scheduler.interpolant.to_velocity(transport_model_fn(x, t), x, t)

    grid = scheduler.time_grid(NUM_POINTS["dopri5"] - 1).float()
    solution = torchdiffeq.odeint(velocity, transport["x0"], grid, method="dopri5", rtol=1e-3, atol=1e-6)[-1]
    # Not 1e-4: its error estimates are near float32's noise, so its step sizes follow the rounding of the machine.
    assert_close(solution, expected, 3e-4)

    fine = InterpolantODEScheduler(path, prediction, solver="dopri5", rtol=1e-7, atol=1e-8)
    exact = fine.solve(transport_model_fn, transport["x0"], 1)
    assert_close(scheduler.solve(transport_model_fn, transport["x0"], 1), exact, 1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_gaussian_data_in_closed_form(path, prediction, solver, latents, gaussian, assert_close):
    mean, std = 0.5, 0.3
    scheduler = InterpolantODEScheduler(path, prediction, solver=solver)
    result = scheduler.solve(
        lambda x, t: gaussian(path, x, t, mean, std)[prediction], latents, 100 if solver == "euler" else 40
    )
    # fehlberg2 underestimates its error by orders of magnitude
    tolerance = {"euler": 0.04, "fehlberg2": 0.1}.get(solver, 5e-3)
    assert_close(result, closed_form(scheduler, latents, mean, std), tolerance)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_samples_have_the_mean_and_spread_of_the_data(path, prediction, gaussian):
    mean, std = -0.4, 0.5
    noise = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    scheduler = InterpolantODEScheduler(path, prediction, solver="rk4")
    samples = scheduler.solve(lambda x, t: gaussian(path, x, t, mean, std)[prediction], noise, 20)
    assert samples.mean().item() == pytest.approx(mean, abs=0.02)
    assert samples.std().item() == pytest.approx(std, abs=0.02)


@pytest.mark.parametrize(
    ("solver", "calls"), [("euler", 6), ("midpoint", 12), ("heun", 12), ("heun3", 18), ("rk4", 24)]
)
def test_number_of_network_calls(solver, calls, latents):
    scheduler = InterpolantODEScheduler(solver=solver)
    for _ in range(2):  # counted anew by each solve
        scheduler.solve(lambda x, t: -x, latents, 6)
        assert scheduler.num_model_calls == calls
    assert scheduler.order * 6 == calls


@pytest.mark.parametrize("solver", FIXED_STEP)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_step_loop_equals_solve(path, prediction, solver, latents):
    def model_fn(x, t):
        return torch.sin(3 * x) + t

    scheduler = InterpolantODEScheduler(path, prediction, solver)
    expected = scheduler.solve(model_fn, latents, 7)
    for _ in range(2):  # set_timesteps starts over
        scheduler.set_timesteps(7)
        assert len(scheduler.timesteps) == 7 * scheduler.order
        x = latents * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(model_fn(scheduler.scale_model_input(x, t), t), t, x).prev_sample
        torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)
    scheduler.set_timesteps(1)
    x = latents
    for t in scheduler.timesteps:
        x = scheduler.step(model_fn(x, t), t, x, return_dict=False)[0]
    torch.testing.assert_close(x, scheduler.solve(model_fn, latents, 1))


@pytest.mark.parametrize("scheduler", [InterpolantODEScheduler(), InterpolantSDEScheduler()])
def test_steps_are_gone_through_in_order(scheduler, latents):
    """A loop that leaves out the first steps would silently run with the times of others."""
    scheduler.set_timesteps(4)
    for t in scheduler.timesteps[1:]:
        with pytest.raises(ValueError, match="entry 0 of scheduler"):
            scheduler.step(latents, t, latents)
    scheduler.step(latents, scheduler.timesteps[0].clone(), latents)  # what it is told elsewhere cannot be checked


@pytest.mark.parametrize("inference_mode", [False, True])
@pytest.mark.parametrize("solver", ["midpoint", "dopri5", "explicit_adams"])
def test_latents_changed_in_place_are_as_replaced_ones(solver, inference_mode, latents):
    """A solver that keeps velocities between its steps must notice that the state is another one."""

    def in_place(step, t, x):
        if step == 1:
            x[:, :, :2] = 1.0

    def replacing(step, t, x):
        return torch.cat([torch.ones_like(x[:, :, :2]), x[:, :, 2:]], dim=2) if step == 1 else None

    scheduler = InterpolantODEScheduler(solver=solver)
    with torch.inference_mode(inference_mode):
        expected = scheduler.solve(lambda x, t: torch.sin(3 * x), latents.clone(), 8, callback=replacing)
        calls = scheduler.num_model_calls
        result = scheduler.solve(lambda x, t: torch.sin(3 * x), latents.clone(), 8, callback=in_place)
    torch.testing.assert_close(result, expected)
    assert scheduler.num_model_calls == calls


def test_half_precision_outputs_keep_the_state_in_float32(latents, assert_close):
    scheduler = InterpolantODEScheduler(solver="euler")
    result = scheduler.solve(lambda x, t: (-x).bfloat16(), latents, 10)
    assert result.dtype == torch.float32
    assert_close(result, latents * 0.9**10, 1e-2)
    scheduler.set_timesteps(2)
    assert scheduler.step(latents.bfloat16(), scheduler.timesteps[0], latents).prev_sample.dtype == torch.float32


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_an_image_does_not_depend_on_its_batch(solver, parity_model, assert_close):
    model, _ = parity_model("atconv")
    latents = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8)
    scheduler = InterpolantODEScheduler(solver=solver, rtol=0.1 if ADAPTIVE[solver].order == 2 else 1e-2)
    together = scheduler.solve(lambda x, t: model(x, t, labels).sample, latents, 1)
    for i in (0, 5):
        alone = scheduler.solve(lambda x, t: model(x, t, labels[i : i + 1]).sample, latents[i : i + 1], 1)  # noqa: B023
        assert_close(together[i : i + 1], alone, 1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("path", PATHS)
def test_reverse_finds_the_noise(path, solver, latents, gaussian, assert_close):
    scheduler = InterpolantODEScheduler(path, solver=solver, rtol=1e-4)

    def model_fn(x, t):
        return gaussian(path, x, t, 0.5, 0.3)["velocity"]

    data = closed_form(scheduler, latents, 0.5, 0.3)
    noise = scheduler.solve(model_fn, data, 200 if solver == "euler" else 40, reverse=True)
    assert_close(noise, latents, 0.05 if solver == "euler" else 0.01)


def test_callback_replaces_and_stops(latents):
    seen = []

    def callback(step, t, x):
        seen.append((step, t))
        if step == 2:
            raise StopIteration
        return torch.zeros_like(x)

    scheduler = InterpolantODEScheduler()
    result = scheduler.solve(lambda x, t: torch.ones_like(x), latents, 4, callback=callback)
    assert seen == [(0, 0.25), (1, 0.5), (2, 0.75)]
    torch.testing.assert_close(result, torch.full_like(latents, 0.25))


def test_config_round_trip(tmp_path, latents):
    scheduler = InterpolantODEScheduler(
        path="gvp", prediction="noise", solver="dopri5", rtol=1e-4, atol=1e-5, train_eps=1e-4, sample_eps=1e-2
    )
    scheduler.save_pretrained(tmp_path)
    loaded = InterpolantODEScheduler.from_pretrained(tmp_path)
    for name, value in scheduler.config.items():
        assert name.startswith("_") or loaded.config[name] == value, name
    again = InterpolantODEScheduler.from_config(scheduler.config)
    for other in (loaded, again):
        assert other.interpolant.path == "gvp"
        assert other.interpolant.prediction == "noise"
        torch.testing.assert_close(
            other.solve(lambda x, t: x, latents, 1), scheduler.solve(lambda x, t: x, latents, 1), rtol=0, atol=0
        )
    assert InterpolantODEScheduler.from_config(scheduler.config, solver="heun").config.solver == "heun"


def test_from_config_keeps_arguments_given_by_position():
    again = InterpolantODEScheduler.from_config(InterpolantODEScheduler("gvp", "noise", "heun").config)
    assert (again.interpolant.path, again.interpolant.prediction, again.config.solver) == ("gvp", "noise", "heun")


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_sample_eps_is_cut_where_needed(path, prediction):
    start, end = InterpolantODEScheduler(path, prediction, sample_eps=0.01).time_grid(3)[[0, -1]].tolist()
    assert (start, end) == pytest.approx(Interpolant(path, prediction).time_interval(0.01))


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (dict(path="cosine"), "path='cosine'"),
        (dict(prediction="epsilon"), "prediction='epsilon'"),
        (dict(solver="ddim"), "solver='ddim'"),
        (dict(rtol=0.0), "rtol=0.0"),
        (dict(atol=-1e-6), "atol=-1e-06"),
        (dict(train_eps=0.6), "train_eps=0.6"),
        (dict(sample_eps=-0.1), "sample_eps=-0.1"),
        (dict(sample_eps=0.5), "sample_eps=0.5"),
        (dict(path="vp", sample_eps=0), "sample_eps=0"),
        (dict(prediction="noise", sample_eps=0.0), "sample_eps=0"),
        (dict(prediction="data", sample_eps=0.0), "sample_eps=0"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, field):
    with pytest.raises(ValueError, match=field):
        InterpolantODEScheduler(**arguments)


@pytest.mark.parametrize("num_inference_steps", [0, -1, 2.5, True, None])
def test_number_of_steps_is_checked(num_inference_steps, latents):
    scheduler = InterpolantODEScheduler()
    with pytest.raises(ValueError, match=f"num_inference_steps={num_inference_steps}"):
        scheduler.solve(lambda x, t: x, latents, num_inference_steps)
    with pytest.raises(ValueError, match=f"num_inference_steps={num_inference_steps}"):
        scheduler.set_timesteps(num_inference_steps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_the_state_must_be_float32(dtype, latents):
    scheduler = InterpolantODEScheduler()
    with pytest.raises(ValueError, match=f"latents are {dtype}"):
        scheduler.solve(lambda x, t: x, latents.to(dtype), 2)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match=f"latents are {dtype}"):
        scheduler.step(latents, scheduler.timesteps[0], latents.to(dtype))


@pytest.mark.parametrize("solver", [*ADAPTIVE, *MULTISTEP])
def test_step_is_for_fixed_step_solvers(solver):
    with pytest.raises(ValueError, match=f"solver='{solver}'"):
        InterpolantODEScheduler(solver=solver).set_timesteps(4)


def test_step_needs_timesteps(latents):
    scheduler = InterpolantODEScheduler(solver="euler")
    with pytest.raises(ValueError, match="call set_timesteps"):
        scheduler.step(latents, torch.tensor(0.0), latents)
    scheduler.set_timesteps(1)
    scheduler.step(latents, scheduler.timesteps[0], latents)
    with pytest.raises(ValueError, match="no timestep is left"):
        scheduler.step(latents, scheduler.timesteps[0], latents)
