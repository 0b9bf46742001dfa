"""What the first bytes of a coded packet tell: whole key frames, and how many samples there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import av

from avloader.source import Packet, codec_name

__all__ = ["KeyCheck", "SampleCounter", "sample_counter"]

SampleCounter: TypeAlias = Callable[[Packet], int]

_H264_SLICES = (1, 5)  # kinds of NAL units: ITU-T H.264, table 7-1
_H264_SEI = 6
_SEI_RECOVERY_POINT = 6


class KeyCheck:
    """Tells H.264 key frames that are whole pictures from those where a gradual refresh only begins.

    Args:
        stream: The video stream; streams of other codecs have whole key frames only.
    """

    def __init__(self, stream: av.VideoStream) -> None:
        self.is_h264 = codec_name(stream) == "h264"
        extradata = stream.codec_context.extradata
        # avcC: every NAL unit follows its length; else Annex B: every one follows 00 00 01.
        self._length_size = (extradata[4] & 3) + 1 if extradata and len(extradata) > 4 and extradata[0] == 1 else 0

    def is_refreshed_later(self, data: bytes) -> bool:
        """Whether the picture is complete only some frames after this packet."""
        if not self.is_h264:
            return False
        for unit in self._units(data):
            kind = unit[0] & 31
            if kind in _H264_SLICES:
                return False
            if kind == _H264_SEI and _recovery_frames(unit) > 0:
                return True
        return False

    def _units(self, data: bytes) -> Iterator[bytes]:
        """The first bytes of each NAL unit."""
        position = 0
        if self._length_size:
            while position + self._length_size < len(data):
                start = position + self._length_size
                position = start + int.from_bytes(data[position:start], "big")
                if start < position:
                    yield data[start : min(position, start + 256)]
            return
        position = data.find(b"\0\0\1")
        while 0 <= position < len(data) - 3:
            following = data.find(b"\0\0\1", position + 3)
            yield data[position + 3 : following if following >= 0 else position + 259]
            position = following


def _recovery_frames(unit: bytes) -> int:
    """`recovery_frame_cnt` of a recovery point message in an H.264 SEI unit; 0 if there is none."""
    payload = unit[1:].replace(b"\0\0\3", b"\0\0")
    position = 0
    while position + 2 < len(payload):
        kind_and_size = []
        for _ in range(2):  # bytes of 255 are continued
            value = 0
            while position < len(payload) and payload[position] == 255:
                value, position = value + 255, position + 1
            if position == len(payload):
                return 0
            kind_and_size.append(value + payload[position])
            position += 1
        kind, size = kind_and_size
        if kind == _SEI_RECOVERY_POINT:
            return _exp_golomb(payload[position : position + 8])
        position += size
    return 0


def _exp_golomb(data: bytes) -> int:
    """The unsigned Exp-Golomb number that `data` (at most 8 bytes) begins with; 0 if it is cut off."""
    bits = int.from_bytes(data.ljust(8, b"\0"), "big")
    zeros = 64 - bits.bit_length()
    return ((bits << zeros & 2**64 - 1) >> 63 - zeros) - 1 if zeros < 32 else 0


def sample_counter(stream: av.AudioStream) -> SampleCounter | None:
    """Tells the samples per channel that a packet decodes to; None where neither codec nor packet state them."""
    codec = codec_name(stream)
    if codec.startswith("pcm_"):
        bits = "8" if codec in ("pcm_alaw", "pcm_mulaw") else "".join(filter(str.isdigit, codec))
        if not bits:  # pcm_bluray and the like: blocks with a header
            return None
        block_bytes = int(bits) // 8 * stream.codec_context.channels
        return lambda packet: packet.size // block_bytes
    if codec == "opus":
        return lambda packet: _opus_samples(bytes(memoryview(packet)[:2]))
    if codec == "flac":
        return lambda packet: _flac_samples(bytes(memoryview(packet)[:16]))
    return None


def _opus_samples(head: bytes) -> int:
    """Samples at 48 kHz of an Opus packet, from its first two bytes (RFC 6716, section 3.1)."""
    config, code = head[0] >> 3, head[0] & 3
    if config < 12:
        frame = (480, 960, 1920, 2880)[config & 3]
    elif config < 16:
        frame = (480, 960)[config & 1]
    else:
        frame = (120, 240, 480, 960)[config & 3]
    count = (1, 2, 2, head[1] & 63 if len(head) > 1 else 0)[code]
    return frame * count


def _flac_samples(head: bytes) -> int:
    """Samples of a FLAC frame, from its header (RFC 9639, section 9.1); 0 if it is none."""
    if len(head) < 16 or head[0] != 0xFF or head[1] & 0xFE != 0xF8:
        return 0
    code = head[2] >> 4
    if code in (6, 7):  # the number minus one follows the frame number, which is coded as in UTF-8
        lead = head[4]
        size = 1 if lead < 0x80 else 8 - (lead ^ 0xFF).bit_length()
        return int.from_bytes(head[4 + size : 4 + size + code - 5], "big") + 1
    return 192 if code == 1 else 576 << code - 2 if 2 <= code <= 5 else 256 << code - 8 if code >= 8 else 0
