"""Sampling by the SDE against the reference's numbers and the closed form of Gaussian data."""

import itertools

import pytest
import torch

from sit_atconv import InterpolantODEScheduler, InterpolantSDEScheduler
from sit_atconv.flow.choices import SDE_SOLVERS
from sit_atconv.flow.interpolants import DIFFUSION_FORMS, PREDICTIONS
from sit_atconv.schedulers.scheduling_interpolant_sde import LAST_STEPS

PATHS = {"linear": "Linear", "gvp": "GVP", "vp": "VP"}  # ours: the reference's
NAMES = {"euler_maruyama": "Euler", "heun": "Heun", "sbdm": "SBDM"}
NOISE_SEED = 104

# At t=1 the score is 0/0 for velocity prediction. The reference's Heun steps, which get there without a last step,
# multiply w=0 with what rounding makes of it; ours take the limit. Its linear path gives infinities and is left out.
UNDEFINED_IN_REFERENCE = [
    (path, "velocity", "heun", form, "none") for path in ("linear", "gvp") for form in ("sigma", "linear")
]
PARITY = [
    case
    for case in [
        *((path, p, s, "sigma", "mean") for path in PATHS for p in ("score", "noise") for s in SDE_SOLVERS),
        *(
            (path, "velocity", solver, form, last_step)
            for path, solver, form, last_step in itertools.product(
                PATHS, SDE_SOLVERS, ("sbdm", "sigma", "linear"), LAST_STEPS
            )
            if path == "vp" or form != "sbdm"
        ),
    ]
    if case not in UNDEFINED_IN_REFERENCE
]


def parity_key(path: str, prediction: str, solver: str, form: str, last_step: str) -> str:
    return f"sde.{PATHS[path]}.{prediction}.{NAMES[solver]}.{NAMES.get(form, form)}.{last_step.capitalize()}"


def generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(scope="module")
def latents():
    return torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", PARITY, ids="-".join)
def test_parity(case, transport, transport_model_fn, assert_close):
    path, prediction, solver, form, last_step = case
    scheduler = InterpolantSDEScheduler(path, prediction, solver, diffusion_form=form, last_step=last_step)
    generator = torch.Generator().manual_seed(NOISE_SEED)
    num_inference_steps = 11 if last_step == "none" else 12
    latents = scheduler.solve(transport_model_fn, transport["x0"], num_inference_steps, generator)
    assert_close(latents, transport[parity_key(*case)], 1e-4)


def test_parity_covers_every_entry(transport):
    covered = {parity_key(*case) for case in [*PARITY, *UNDEFINED_IN_REFERENCE]}
    entries = {key for key in transport if key.startswith("sde.")}
    assert entries <= covered
    assert {parity_key(*case) for case in PARITY} <= entries


def is_refused(path: str, prediction: str, form: str, last_step: str) -> bool:
    """Where the SDE would run into t=1 with w above 0."""
    return last_step == "none" and form == "constant" and prediction == "velocity" and path != "vp"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("form", DIFFUSION_FORMS)
def test_every_combination_is_finite(form, prediction, path, latents, gaussian):
    num_inference_steps = 20 if form == "sbdm" else 6  # its w is in the hundreds at the start
    for solver, last_step in itertools.product(SDE_SOLVERS, LAST_STEPS):
        if is_refused(path, prediction, form, last_step):
            with pytest.raises(ValueError, match="w is not 0 at t=1"):
                InterpolantSDEScheduler(path, prediction, solver, diffusion_form=form, last_step=last_step)
            continue
        scheduler = InterpolantSDEScheduler(path, prediction, solver, diffusion_form=form, last_step=last_step)
        result = scheduler.solve(
            lambda x, t: gaussian(path, x, t, 0.3, 0.5)[prediction],
            latents,
            num_inference_steps,
            torch.Generator().manual_seed(0),
        )
        assert torch.isfinite(result).all(), (solver, last_step)
        assert result.abs().max() < 20, (solver, last_step)


MOMENTS = [
    *itertools.product(PATHS, ["velocity"], DIFFUSION_FORMS, SDE_SOLVERS, LAST_STEPS),
    *itertools.product(PATHS, ["score", "noise", "data"], ["sigma"], ["euler_maruyama"], LAST_STEPS),
]


@pytest.mark.parametrize(
    ("path", "prediction", "form", "solver", "last_step"),
    [case for case in MOMENTS if not is_refused(case[0], case[1], case[2], case[4])],
)
def test_samples_have_the_mean_and_spread_of_the_data(path, prediction, form, solver, last_step, gaussian):
    """For any w(t) the marginals are those of the interpolant, up to where the last step starts. That is an affine map
    of Gaussian data, so the mean and the spread after it are known, too. Within 0.03 at 100 steps."""
    mean, std = -0.4, 0.5
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 1, 64, 64, generator=generator)
    scheduler = InterpolantSDEScheduler(path, prediction, solver, diffusion_form=form, last_step=last_step)
    samples = scheduler.solve(lambda x, t: gaussian(path, x, t, mean, std)[prediction], noise, 100, generator)

    if last_step != "none":
        t = torch.tensor(1 - scheduler.config.last_step_size)
        alpha, sigma = scheduler.interpolant.alpha(t), scheduler.interpolant.sigma(t)
        centre, spread = alpha * mean, (alpha**2 * std**2 + sigma**2).sqrt()
        x = torch.stack([centre, centre + spread]).view(2, 1)
        truth = gaussian(path, x, t, mean, std)
        w = scheduler.interpolant.diffusion(t, form)
        after = {
            "mean": x + scheduler.config.last_step_size * (truth["velocity"] + w * truth["score"]),
            "euler": x + scheduler.config.last_step_size * truth["velocity"],
            "tweedie": truth["data"],
        }[last_step]
        mean, std = after[0].item(), (after[1] - after[0]).item()
    assert samples.mean().item() == pytest.approx(mean, abs=0.03)
    assert samples.std().item() == pytest.approx(std, abs=0.03)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_every_prediction_is_the_same_sde(path, prediction, latents, gaussian, assert_close):
    def solve(prediction):
        scheduler = InterpolantSDEScheduler(path, prediction, sample_eps=1e-3, last_step="mean")
        generator = torch.Generator().manual_seed(1)
        return scheduler.solve(lambda x, t: gaussian(path, x, t, 0.3, 0.5)[prediction], latents, 100, generator)

    assert_close(solve(prediction), solve("velocity"), 0.02)


@pytest.mark.parametrize("form", ["sigma", "constant"])
@pytest.mark.parametrize("prediction", ["velocity", "noise"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("last_step", ["mean", "euler", "tweedie"])
def test_last_step(last_step, path, prediction, form, latents, gaussian, assert_close):
    """It takes the state at 1 − h to 1 without noise, as its name says."""
    h, states = 0.1, []
    scheduler = InterpolantSDEScheduler(
        path, prediction, diffusion_form=form, diffusion_norm=0.7, last_step=last_step, last_step_size=h
    )
    result = scheduler.solve(
        lambda x, t: gaussian(path, x, t, 0.3, 0.5)[prediction],
        latents,
        5,
        torch.Generator().manual_seed(0),
        callback=lambda i, t, x: states.append((t, x)),
    )
    t, x = states[-2]
    assert t == pytest.approx(1 - h)
    t = torch.tensor(t)
    truth = gaussian(path, x, t, 0.3, 0.5)
    w = scheduler.interpolant.diffusion(t, form, 0.7)
    expected = {
        "mean": x + h * (truth["velocity"] + w * truth["score"]),
        "euler": x + h * truth["velocity"],
        "tweedie": truth["data"],
    }
    assert_close(result, expected[last_step], 1e-4)


@pytest.mark.parametrize(
    ("solver", "last_step", "calls"),
    [
        ("euler_maruyama", "mean", 6),
        ("euler_maruyama", "tweedie", 6),
        ("euler_maruyama", "none", 6),
        ("heun", "mean", 11),
        ("heun", "none", 12),
    ],
)
def test_number_of_network_calls(solver, last_step, calls, latents):
    scheduler = InterpolantSDEScheduler(solver=solver, last_step=last_step)
    for _ in range(2):  # counted anew by each solve
        scheduler.solve(lambda x, t: -x, latents, 6)
        assert scheduler.num_model_calls == calls


@pytest.mark.parametrize("last_step", LAST_STEPS)
def test_grid_reaches_the_data(last_step, latents):
    times = []
    scheduler = InterpolantSDEScheduler(last_step=last_step, last_step_size=0.1)
    scheduler.solve(lambda x, t: -x, latents, 4, callback=lambda i, t, x: times.append(t))
    assert times == pytest.approx([0.25, 0.5, 0.75, 1.0] if last_step == "none" else [0.3, 0.6, 0.9, 1.0])


@pytest.mark.parametrize("last_step", LAST_STEPS)
@pytest.mark.parametrize("path", PATHS)
def test_step_loop_equals_solve(path, last_step, latents):
    def model_fn(x, t):
        return torch.sin(3 * x) + t

    scheduler = InterpolantSDEScheduler(path, last_step=last_step)
    expected = scheduler.solve(model_fn, latents, 7, torch.Generator().manual_seed(2))
    for _ in range(2):  # set_timesteps starts over
        generator = torch.Generator().manual_seed(2)
        scheduler.set_timesteps(7)
        assert len(scheduler.timesteps) == 7
        x = latents * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(model_fn(scheduler.scale_model_input(x, t), t), t, x, generator).prev_sample
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="no timestep is left"):
        scheduler.step(latents, scheduler.timesteps[-1], latents)


@pytest.mark.parametrize("solver", SDE_SOLVERS)
def test_one_generator_per_image_makes_images_independent(solver, latents):
    scheduler = InterpolantSDEScheduler(solver=solver)

    def solve(rows, generator):
        return scheduler.solve(lambda x, t: torch.sin(x), latents[rows], 5, generator)

    together = solve([0, 1, 2], generators([5, 6, 7]))
    torch.testing.assert_close(together[1:2], solve([1], generators([6])))
    torch.testing.assert_close(together[[2, 0]], solve([2, 0], generators([7, 5])))
    assert not torch.allclose(together[1:2], solve([1], generators([7])))


def test_the_noise_is_a_function_of_the_generator(latents):
    scheduler = InterpolantSDEScheduler()

    def solve(seed):
        return scheduler.solve(lambda x, t: -x, latents, 5, torch.Generator().manual_seed(seed))

    torch.testing.assert_close(solve(0), solve(0), rtol=0, atol=0)
    assert not torch.allclose(solve(0), solve(1))


def test_callback_replaces_and_stops(latents):
    seen = []

    def callback(step, t, x):
        seen.append((step, x))
        if step == 3:
            raise StopIteration
        return torch.zeros_like(x)

    scheduler = InterpolantSDEScheduler(last_step="mean", last_step_size=0.04)
    result = scheduler.solve(lambda x, t: torch.ones_like(x), latents, 4, callback=callback)
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert result is seen[-1][1]
    # From 0, the last step is h·(velocity + w·score): velocity 1 at x=0 means the score (1 − h)/h, and w is sigma = h.
    torch.testing.assert_close(result, torch.full_like(latents, 0.04 * (1 + 0.96)), rtol=1e-4, atol=1e-6)


def test_config_round_trip(tmp_path, latents):
    scheduler = InterpolantSDEScheduler(
        path="gvp",
        prediction="noise",
        solver="heun",
        diffusion_form="linear",
        diffusion_norm=0.5,
        last_step="tweedie",
        last_step_size=0.1,
        sample_eps=1e-2,
    )
    scheduler.save_pretrained(tmp_path)
    loaded = InterpolantSDEScheduler.from_pretrained(tmp_path)
    for name, value in scheduler.config.items():
        assert name.startswith("_") or loaded.config[name] == value, name
    for other in (loaded, InterpolantSDEScheduler.from_config(scheduler.config)):
        torch.testing.assert_close(
            *(s.solve(lambda x, t: x, latents, 4, torch.Generator().manual_seed(0)) for s in (other, scheduler)),
            rtol=0,
            atol=0,
        )


@pytest.mark.parametrize("saved", [False, True])
def test_schedulers_take_each_others_configs(saved, tmp_path):
    """Path and prediction carry over; a solver that the other kind does not know becomes its default."""

    def config(scheduler):
        if not saved:
            return scheduler.config
        scheduler.save_pretrained(tmp_path)
        return type(scheduler).load_config(tmp_path)

    ode = InterpolantODEScheduler(path="gvp", prediction="noise", solver="rk4", rtol=1e-2)
    sde = InterpolantSDEScheduler.from_config(config(ode))
    assert (sde.interpolant.path, sde.interpolant.prediction) == ("gvp", "noise")
    assert sde.config.solver == "euler_maruyama"
    again = InterpolantODEScheduler.from_config(config(sde))
    assert (again.interpolant.path, again.config.solver) == ("gvp", "midpoint")
    assert InterpolantODEScheduler.from_config(config(ode)).config.solver == "rk4"
    with pytest.raises(ValueError, match="solver='rk4'"):
        InterpolantSDEScheduler.from_config(config(ode), solver="rk4")


def test_from_config_keeps_arguments_given_by_position():
    again = InterpolantSDEScheduler.from_config(InterpolantSDEScheduler("gvp", "noise", "heun").config)
    assert (again.interpolant.path, again.interpolant.prediction, again.config.solver) == ("gvp", "noise", "heun")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (dict(path="cosine"), "path='cosine'"),
        (dict(prediction="epsilon"), "prediction='epsilon'"),
        (dict(solver="euler"), "solver='euler'"),
        (dict(diffusion_form="quadratic"), "diffusion_form='quadratic'"),
        (dict(diffusion_norm=0.0), "diffusion_norm=0.0"),
        (dict(last_step="Mean"), "last_step='Mean'"),
        (dict(last_step=None), "last_step=None"),
        (dict(last_step_size=0.0), "last_step_size=0.0"),
        (dict(last_step_size=0.5), "last_step_size=0.5"),
        (dict(train_eps=0.6), "train_eps=0.6"),
        (dict(path="vp", sample_eps=0), "sample_eps=0"),
        (dict(prediction="score", sample_eps=0.0), "sample_eps=0"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, field):
    with pytest.raises(ValueError, match=field):
        InterpolantSDEScheduler(**arguments)


@pytest.mark.parametrize("num_inference_steps", [0, -1, 2.5, None])
def test_number_of_steps_is_checked(num_inference_steps, latents):
    scheduler = InterpolantSDEScheduler()
    with pytest.raises(ValueError, match=f"num_inference_steps={num_inference_steps}"):
        scheduler.solve(lambda x, t: x, latents, num_inference_steps)
    with pytest.raises(ValueError, match=f"num_inference_steps={num_inference_steps}"):
        scheduler.set_timesteps(num_inference_steps)


def test_a_last_step_needs_another_step(latents):
    with pytest.raises(ValueError, match="num_inference_steps=1 leaves no step besides last_step='mean'"):
        InterpolantSDEScheduler().solve(lambda x, t: x, latents, 1)
    InterpolantSDEScheduler(last_step="none").solve(lambda x, t: x, latents, 1)


def test_the_state_must_be_float32(latents):
    scheduler = InterpolantSDEScheduler()
    with pytest.raises(ValueError, match=r"latents are torch\.float16"):
        scheduler.solve(lambda x, t: x, latents.half(), 2)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match=r"latents are torch\.float16"):
        scheduler.step(latents, scheduler.timesteps[0], latents.half())


def test_step_is_for_solvers_of_one_call():
    with pytest.raises(ValueError, match="solver='heun'"):
        InterpolantSDEScheduler(solver="heun").set_timesteps(4)


def test_a_list_of_generators_must_fit_the_batch(latents):
    with pytest.raises(ValueError, match="generators"):
        InterpolantSDEScheduler().solve(lambda x, t: x, latents, 3, generators([0, 1]))
