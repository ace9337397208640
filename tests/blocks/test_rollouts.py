"""Roll-outs: the level of x_t is that of t, except where official code says otherwise."""

import pytest
import torch

from overpaint.blocks.draws import Draws, replayed
from overpaint.blocks.rollouts import compvis_rollout, leco_rollout, rollout


class Oracle:
    """Knows the image and predicts the exact noise of a latent, so that a roll-out stays on the exact path."""

    def __init__(self, model, image):
        self.alphas, self.image = model.alphas_cumprod.double(), image

    def __call__(self, latents, timestep, step):
        alpha = self.alphas[int(timestep)]
        return (latents - alpha.sqrt() * self.image) / (1 - alpha).sqrt()

    def level(self, latents, noise):
        """ᾱ of x = √ᾱ x_0 + √(1−ᾱ) ε."""
        basis = torch.stack([self.image.flatten(), noise.flatten()], 1)
        return float(torch.linalg.lstsq(basis, latents.flatten()[:, None]).solution[0] ** 2)


@pytest.fixture
def path(tiny_sd_float64):
    model = tiny_sd_float64
    image, noise = model.noise([1]) * 0.5, model.noise([2])
    return model, Oracle(model, image), noise


@pytest.mark.parametrize("scheduler", ["ddim", "pndm"])
@pytest.mark.parametrize("steps, k", [(50, 0), (50, 7), (50, 49), (20, 3)])
def test_the_level_of_x_is_that_of_t(path, scheduler, steps, k):
    model, oracle, noise = path
    start_alpha = model.alphas_cumprod.double()[int(_first(model, scheduler, steps))]
    start = start_alpha.sqrt() * oracle.image + (1 - start_alpha).sqrt() * noise
    latents, t = rollout(model, start, oracle, scheduler, steps, k)
    tolerance = 1e-5 if scheduler == "ddim" else 2e-2  # PNDM's second step is not exact even here
    assert oracle.level(latents, noise) == pytest.approx(float(model.alphas_cumprod[t]), rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("k", [0, 7, 30, 49])
@pytest.mark.parametrize("layout", ["tiny_sd_float64", "tiny_sdxl"])
def test_euler_latents_are_as_noisy_as_the_network_expects(layout, k, request):
    """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε with both coefficients: scaled for the network, not as stored by the sampler."""
    model = request.getfixturevalue(layout)
    image, noise = (model.noise([1]) * 0.5).double(), model.noise([2]).double()
    oracle, schedule = Oracle(model, image), model.scheduler("euler")
    schedule.set_timesteps(50)
    first = oracle.alphas[int(schedule.timesteps[0])]
    start = first.sqrt() * image + (1 - first).sqrt() * noise
    latents, t = rollout(model, start, oracle, "euler", 50, k)
    assert t == schedule.timesteps[k]
    basis = torch.stack([image.flatten(), noise.flatten()], 1)
    found = torch.linalg.lstsq(basis, latents.double().flatten()[:, None]).solution.flatten()
    wanted = torch.stack(model.levels(t, image))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def _first(model, scheduler, steps):
    schedule = model.scheduler(scheduler)
    schedule.set_timesteps(steps)
    return schedule.timesteps[0]


@pytest.mark.parametrize("k", [0, 1, 2, 20, 48, 49])
def test_the_official_loop_is_cleaner_than_its_timestep(path, k):
    model, oracle, noise = path
    alphas = model.alphas_cumprod.double()
    start = alphas[961].sqrt() * oracle.image + (1 - alphas[961]).sqrt() * noise
    latents, t = compvis_rollout(model, start, oracle, 50, k, Draws(0))
    level = 0 if k < 2 else 20 * (k - 2) + 1
    assert oracle.level(latents, noise) == pytest.approx(float(alphas[level]), rel=1e-5)
    assert 20 * k <= t < 20 * (k + 1)


class VelocityOracle(Oracle):
    """Predicts the same as a velocity, √ᾱ ε − √(1−ᾱ) x_0."""

    def __call__(self, latents, timestep, step):
        alpha = self.alphas[int(timestep)]
        return alpha.sqrt() * super().__call__(latents, timestep, step) - (1 - alpha).sqrt() * self.image


@pytest.mark.parametrize("official", ["compvis", "leco"])
def test_official_loops_take_a_velocity_for_a_velocity(path, predicting, official):
    """The latents equal those of an equivalent network that predicts noise."""
    plain, oracle, noise = path
    model = predicting("v_prediction")
    velocity = VelocityOracle(model, oracle.image)
    if official == "compvis":
        by_noise, by_velocity = (
            compvis_rollout(*each, 50, 20, Draws(0))[0] for each in ((plain, noise, oracle), (model, noise, velocity))
        )
    else:
        by_noise, by_velocity = (
            leco_rollout(*each, 30, 20)[0] for each in ((plain, noise, oracle), (model, noise, velocity))
        )
    torch.testing.assert_close(by_velocity, by_noise, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_official_loop_leaves_the_noise_of_the_lowest_level(tiny_sd, dtype):
    """For an empty image √(1−ᾱ_0) ε remains, although ᾱ_0 is rounded to 1 in bfloat16."""
    noise = tiny_sd.noise([2])
    start = (1 - tiny_sd.alphas_cumprod[801]).sqrt() * noise
    latents, _ = compvis_rollout(tiny_sd, start.to(dtype), lambda *_: noise.to(dtype), 10, 1, Draws(0))
    assert latents.dtype == dtype
    left = float((latents.double() * noise).sum() / noise.square().sum())
    assert left == pytest.approx(float((1 - tiny_sd.alphas_cumprod[0]).sqrt()), abs=0.01)


def test_replayed_draws_take_the_place_of_drawn_ones():
    drawn, draws = Draws(3), Draws(3)
    first, second = drawn.integer("k", 0, 1000), drawn.integer("k", 0, 1000)
    with replayed({"k.0": torch.tensor([7])}):
        assert draws.integer("k", 0, 1000) == 7
        assert draws.integer("k", 0, 1000) == first != second
