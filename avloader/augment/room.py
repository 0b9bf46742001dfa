"""Rooms: sound convolved with impulse responses, the direct path where the sound was."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch

from avloader.augment.bank import ImpulseResponseBank
from avloader.augment.base import Transform
from avloader.augment.checks import check_choice
from avloader.augment.convolve import convolve
from avloader.augment.energy import bits_for, energy
from avloader.augment.keys import Draw
from avloader.augment.rows import Clips, Columns, Rows

__all__ = ["ApplyImpulseResponse"]


@dataclass(frozen=True)
class ApplyImpulseResponse(Transform):
    """Convolve each clip with the impulse response of a random room.

    The response is shifted so that its direct path stands at time 0: sound stays where it was. The clip's length stays,
    what rings on beyond it is cut off.

    Args:
        responses: The rooms.
        level: ``"rms"``: the clip keeps its RMS; ``"direct"``: the direct path keeps its level.
        p: See `Node`.
        name: See `Node`.

    Returns ``response``, the room's number in the bank.
    """

    responses: ImpulseResponseBank
    _: KW_ONLY
    level: Literal["rms", "direct"] = "rms"

    num_words = 1
    takes_scale = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.responses, ImpulseResponseBank):
            raise TypeError(f"responses={self.responses!r} must be an ImpulseResponseBank")
        check_choice("level", self.level, ("rms", "direct"))

    def draw(self, draw: Draw, clips: Clips) -> Columns:  # noqa: D102
        bank = self.responses
        if bank.sample_rate != clips.sample_rate:
            raise ValueError(
                f"the bank has sample_rate={bank.sample_rate}, but the sound has {clips.sample_rate}; "
                "make the bank with the same"
            )
        return {"response": draw.integers(1, 0, len(bank)), "bits": bits_for(clips.length)}

    def reported(self, columns: Columns) -> Columns:  # noqa: D102
        return {"response": columns["response"]}

    def apply(self, rows: Rows) -> torch.Tensor:  # noqa: D102
        scale, bits = rows.columns["scale"], rows.columns["bits"]
        taps = self.responses.on(rows.audio.device)[rows.columns["response"]]
        result = convolve(rows, taps, self.responses.middle)
        if self.level == "direct":
            return result * scale[:, None]
        ratio = energy(rows.audio, bits).value() / energy(result, bits).value()
        gain = ratio.sqrt_().nan_to_num_(0.0, 0.0).float()
        return result * (gain * scale)[:, None]
