from __future__ import annotations

import torch

from lora_trainer.train.data.rng import CLASS, INSTANCE, image_index, sample_rng

SHAPE = (4, 8, 8)


def test_every_image_is_used_once_an_epoch_in_changing_order() -> None:
    epochs = [tuple(image_index(0, INSTANCE, 7 * e + i, 7) for i in range(7)) for e in range(5)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) > 1


def test_a_sample_depends_on_seed_stream_and_number_alone() -> None:
    first, again = sample_rng(3, INSTANCE, 12, SHAPE, 1000), sample_rng(3, INSTANCE, 12, SHAPE, 1000)
    assert first.timestep == again.timestep
    assert torch.equal(first.noise, again.noise)
    assert not torch.equal(first.noise, first.posterior)
    for other in (
        sample_rng(4, INSTANCE, 12, SHAPE, 1000),
        sample_rng(3, CLASS, 12, SHAPE, 1000),
        sample_rng(3, INSTANCE, 13, SHAPE, 1000),
    ):
        assert not torch.equal(first.noise, other.noise)


def test_noise_is_standard_normal_and_timesteps_uniform() -> None:
    rngs = [sample_rng(0, INSTANCE, n, SHAPE, 1000) for n in range(400)]
    noise = torch.stack([d.noise for d in rngs])
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    steps = torch.tensor([float(d.timestep) for d in rngs])
    assert steps.min() >= 0
    assert steps.max() < 1000
    assert abs(steps.mean() - 500) < 50
