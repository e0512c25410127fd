"""Whisper's encoder as a PyTorch engineer times it: log-mel and encoder in one module on the device.

`transformers`' encoder with SDPA. Its positions end with the window, as ours do: Whisper's own 30 s would triple
the work of a 10 s utterance.
"""

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers.audio_utils import mel_filter_bank

_FFT_SAMPLES, _HOP_SAMPLES, _RATE_HZ = 400, 160, 16_000


class Encoder(nn.Module):
    """Waveforms [B, S] of one length to frames [B, S // 320, E]."""

    window: torch.Tensor
    filters: torch.Tensor

    def __init__(self, values: Mapping[str, Any], num_samples: int):
        """Args: keys of the encoder's config.json; samples of every waveform."""
        super().__init__()
        values = {k: v for k, v in values.items() if k != "model_type"}
        values["max_source_positions"] = num_samples // _HOP_SAMPLES // 2
        config = transformers.WhisperConfig(**values)
        config._attn_implementation = "sdpa"
        model = transformers.models.whisper.modeling_whisper.WhisperEncoder(config)
        self.model = model.eval().requires_grad_(False)
        mels = values["num_mel_bins"]
        filters = mel_filter_bank(
            1 + _FFT_SAMPLES // 2, mels, 0.0, _RATE_HZ / 2, _RATE_HZ, norm="slaney", mel_scale="slaney"
        )  # fmt: skip
        self.register_buffer("filters", torch.tensor(filters, dtype=torch.float32))
        self.register_buffer("window", torch.hann_window(_FFT_SAMPLES))

    def forward(self, waveform_BS: torch.Tensor) -> torch.Tensor:
        """Frames of the last layer, after its norm."""
        mel_BMF = self.log_mel(waveform_BS).to(self.model.conv1.weight.dtype)
        return self.model(mel_BMF).last_hidden_state

    def log_mel(self, waveform_BS: torch.Tensor) -> torch.Tensor:
        """Whisper's spectrogram [B, M, S // 160], float32."""
        spectrum = torch.stft(
            waveform_BS, _FFT_SAMPLES, _HOP_SAMPLES, window=self.window, return_complex=True
        )
        power_BKF = spectrum[..., :-1].abs().square()
        log = torch.log10((self.filters.T @ power_BKF).clamp(min=1e-10))
        return (log.maximum(log.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0
