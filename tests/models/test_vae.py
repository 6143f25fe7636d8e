"""Decoding with an autoencoder, in parts of the batch whose memory is bounded."""

import torch
from diffusers import AutoencoderKL

from sit_atconv.models import vae as module
from sit_atconv.models.codecs import decoding_bytes
from sit_atconv.models.vae import decode


def test_a_batch_is_decoded_in_parts_that_fit(monkeypatch):
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=4).eval()
    latents = torch.randn(5, 4, 6, 4, generator=torch.Generator().manual_seed(0))
    sizes: list[int] = []
    vae.decoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    with torch.no_grad():
        whole = decode(vae, latents)
        monkeypatch.setattr(module, "DECODING_BYTES", 2 * decoding_bytes(vae, 6, 4) + 1)
        torch.testing.assert_close(decode(vae, latents), whole)
        monkeypatch.setattr(module, "DECODING_BYTES", 1)
        torch.testing.assert_close(decode(vae, latents), whole)
    assert sizes == [5, 2, 2, 1, 1, 1, 1, 1, 1]
