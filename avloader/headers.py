"""Proof of frame times from the sample tables of mp4 and mov files, without reading all packets.

FFmpeg's own index must have as many entries as the tables, and agree with them here and there; its first and last
packets must be the tables' first and last samples. What is not proved is left to `avloader.packets`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import av.container
import numpy as np
import numpy.typing as npt

from avloader.bitstream import KeyCheck
from avloader.facts import AudioInfo
from avloader.mp4 import Movie, Track
from avloader.packets import SoundLog, begins_with_key_frame, skipped_samples
from avloader.shorten import NUM_FIRST, Middle
from avloader.source import Packet, Source, Stream, as_fraction, codec_name, time_base_of
from avloader.streams import WHOLE_FRAME_CODECS, Grid, Pictures, audio_info
from avloader.timeline import round_half_up

__all__ = ["prove"]

_NUM_END_PACKETS = 6
_MAX_PACKETS = 2000  # read at one end, for files whose streams are badly interleaved
_NUM_MIDDLE_SAMPLES = 16
_KEY_BYTES = 4096  # of a key frame: enough for its SEI messages
_MAX_REORDER = 16  # frames by which B-frames move another one: ITU-T H.264, A.3.1
_JOINT = slice(NUM_FIRST - _MAX_REORDER - 1, NUM_FIRST + 1)  # samples on both sides of what was left out
_LARGEST_RATIONAL = 2**31 - 1  # what FFmpeg reduces without rounding

_Int64 = npt.NDArray[np.int64]
_Bool = npt.NDArray[np.bool_]


def prove(
    source: Source, movie: Movie, middles: Mapping[int, Middle] | None = None
) -> tuple[Pictures | Grid | None, AudioInfo | None] | None:
    """What the tables say, if FFmpeg's index and packets agree with them; else None.

    Args:
        source: The opened medium.
        movie: Its tables.
        middles: By track id, what was left out of them in `source` and `movie` alike (`avloader.shorten`).
    """
    claims = []
    middles = middles or {}
    for stream in source.streams:
        track = movie.tracks.get(stream.id)
        claim = None
        if track is not None and track.timescale * time_base_of(stream) == 1:
            middle = middles.get(stream.id)
            if isinstance(stream, av.VideoStream):
                claim = _picture_claim(stream, track)
            else:
                claim = _sound_claim(stream, track, is_gapless=middle is not None or _is_gapless(track.stts))
            if claim is not None and middle is not None and not claim.is_shown[_JOINT].all():
                return None
        if claim is None:
            return None
        claims.append(claim)
    sound_log = None if source.audio is None else SoundLog(source.audio)
    if not _head_agrees(source.container, claims, sound_log):
        return None
    if not all(claim.middle_agrees() and claim.tail_agrees(source.container) for claim in claims):
        return None
    pictures: Pictures | Grid | None = None
    sound: AudioInfo | None = None
    for claim in claims:
        if isinstance(claim.stream, av.VideoStream):
            middle = middles.get(claim.stream.id)
            if middle is None:
                pictures = _pictures(source.path, claim.stream, claim)
                first_pts = int(pictures.pts.min())
            else:
                pictures = _grid(source.path, claim.stream, claim, middle)
                if pictures is None:
                    return None
                first_pts = pictures.first_pts
            is_plain = begins_with_key_frame(claim.pts[claim.first :], claim.is_key[claim.first :])
            if not is_plain or first_pts != claim.stream.start_time:
                return None
        else:
            assert sound_log is not None
            sound = audio_info(source, claim.stream, sound_log.sounds())
            if sound is None or sound.gaps or not sound.frame_size or sound.start_pts != claim.stream.start_time:
                return None
            tick = sound.time_base * sound.sample_rate
            sound = replace(sound, num_samples=round_half_up((claim.stop_pts - sound.start_pts) * tick))
    return pictures, sound


@dataclass(eq=False)
class _Claim:
    """What the tables of one track claim, to be compared with what FFmpeg reads.

    Attributes:
        stream: FFmpeg's stream.
        track: The tables.
        pts: int64, of every sample that is a packet of its own, in decoding order; empty for PCM, whose packets are
            what FFmpeg makes of it.
        is_shown, is_key: bool, of the same.
        stop_pts: End of the last packet in ticks.
        first: The sample that FFmpeg reads first.
        next_sample: The sample that must come next; -1: any.
    """

    stream: Stream
    track: Track
    pts: _Int64
    is_shown: _Bool
    is_key: _Bool
    stop_pts: int = 0
    first: int = 0
    next_sample: int = -1

    @property
    def is_pcm(self) -> bool:
        """Whether packets are no samples of the table."""
        return not len(self.pts)

    def agrees(self, packet: Packet) -> bool:
        """Whether this packet is the sample that the tables say comes next."""
        if packet.pts is None:
            return False
        if self.is_pcm:
            return True
        if self.next_sample < 0:
            matches = np.flatnonzero(self.pts == packet.pts)
            if len(matches) != 1:
                return False
            self.next_sample = int(matches[0])
        sample = self.next_sample
        self.next_sample += 1
        return (
            sample < len(self.pts)
            and int(self.pts[sample]) == packet.pts
            and bool(self.is_shown[sample]) != packet.is_discard
            and bool(self.is_key[sample]) == packet.is_keyframe
        )

    def middle_agrees(self) -> bool:
        """Whether FFmpeg's index has the samples of the tables, no more and no fewer, at the same places and times."""
        if self.is_pcm:
            return True
        index = self.stream.index_entries
        last = int(np.flatnonzero(self.is_shown)[-1])
        if not last < self.first + len(index) <= len(self.pts):
            return False
        step = max(1, len(index) // _NUM_MIDDLE_SAMPLES)
        entries = np.arange(0, len(index), step)
        samples = self.first + entries
        claimed = np.column_stack([self.track.positions(samples), self.track.decoding_time[samples]])
        looked_at = [index[number] for number in entries.tolist()]
        found = np.array([(entry.pos, entry.size, entry.timestamp) for entry in looked_at])
        found[:, 2] += claimed[0, 2] - found[0, 2]
        return bool((claimed == found).all())

    def tail_agrees(self, container: av.container.InputContainer) -> bool:
        """Whether FFmpeg's last packets are the tables' last shown samples."""
        if self.is_pcm:
            last, target = -1, self.stop_pts - 1
        else:
            last = int(np.flatnonzero(self.is_shown)[-1])
            target = int(self.pts[max(0, last - _NUM_END_PACKETS) : last + 1].min())
        # All streams are positioned, but only this one must be read: its last packets come first or soon.
        container.seek(target, stream=self.stream, any_frame=True)
        self.next_sample = -1
        least = int(self.track.stts[0, 1]) if codec_name(self.stream) in WHOLE_FRAME_CODECS else 0
        for seen, packet in enumerate(container.demux(self.stream)):
            if not packet.size or seen > _MAX_PACKETS or not self.agrees(packet):
                return False
            assert packet.pts is not None
            stop = packet.pts + max(packet.duration or 0, least) - self._trimmed(packet)
            if self.is_pcm:
                if stop == self.stop_pts:
                    return True
            elif self.next_sample == last + 1:
                self.stop_pts = stop
                return True
        return False

    def _trimmed(self, packet: Packet) -> int:
        """Ticks by which a decoder shortens the sound of a packet; FFmpeg 9 does where it ends after the edit list."""
        if not isinstance(self.stream, av.AudioStream):
            return 0
        _, trim = skipped_samples(packet)
        return round_half_up(trim / (time_base_of(self.stream) * self.stream.codec_context.sample_rate))


def _picture_claim(stream: av.VideoStream, track: Track) -> _Claim | None:
    pts = track.composition + track.offset
    if not track.is_shown.any():
        return None
    if track.has_edit:
        # FFmpeg moves a picture that a cut begins within to the cut's start.
        pts -= max(0, int(pts[track.is_shown].min()) - (track.offset + track.edit[0]))
    return _Claim(stream, track, pts, track.is_shown, track.is_key)


def _sound_claim(stream: av.AudioStream, track: Track, *, is_gapless: bool) -> _Claim | None:
    if track.ctts is not None or not is_gapless:
        return None
    if codec_name(stream).startswith("pcm_"):
        if track.edit[0] > 0:
            return None
        nothing = np.zeros(0, dtype=np.bool_)
        total = int((track.stts[:, 0] * track.stts[:, 1]).sum())
        stop_pts = min(total, track.edit[1]) + track.offset
        return _Claim(stream, track, np.zeros(0, np.int64), nothing, nothing, stop_pts)
    # Of a packet that only ends inside the edit, FFmpeg drops the first samples.
    ends = track.composition + track.duration
    is_shown = (ends > track.edit[0]) & (track.composition < track.edit[1])
    if not is_shown.any():
        return None
    return _Claim(stream, track, track.composition + track.offset, is_shown, track.is_key)


def _is_gapless(stts: _Int64) -> bool:
    """Whether all samples but the last have the same duration, and the last is no longer."""
    if len(stts) > 2 or (len(stts) == 2 and stts[1, 0] != 1):
        return False
    return bool(stts[0, 1] > 0 and stts[-1, 1] <= stts[0, 1])


def _head_agrees(container: av.container.InputContainer, claims: list[_Claim], sound_log: SoundLog | None) -> bool:
    """Whether FFmpeg's first packets are the tables' first samples, and nothing shown lies before them."""
    waiting = {claim.stream.index: claim for claim in claims}
    num_shown = dict.fromkeys(waiting, 0)
    for seen, packet in enumerate(container.demux([claim.stream for claim in claims])):
        index = packet.stream_index
        claim = waiting.get(index)
        if claim is None:
            continue
        if packet.size:
            is_first = claim.next_sample < 0
            if seen > _MAX_PACKETS or not claim.agrees(packet):
                return False
            if is_first and not claim.is_pcm:
                claim.first = claim.next_sample - 1
                if claim.is_shown[: claim.first].any():
                    return False
            if sound_log is not None and isinstance(claim.stream, av.AudioStream):
                sound_log.add(packet)
            num_shown[index] += not packet.is_discard
        if not packet.size or num_shown[index] == _NUM_END_PACKETS:
            del waiting[index]
            if not waiting:
                break
    return all(num_shown.values())


def _pictures(path: str, stream: av.VideoStream, claim: _Claim) -> Pictures:
    is_key = claim.is_key.copy()
    refreshed_later = False
    check = KeyCheck(stream)
    keys = np.flatnonzero(is_key)
    if check.is_h264 and 1 < len(keys) < len(is_key):
        # Three of them tell how the file was made; where these are not all whole pictures, every one is looked at.
        some = keys[[1, len(keys) // 2, len(keys) - 1]]
        if _refreshed_later(path, claim.track.positions(some), check).any():
            is_key[keys[_refreshed_later(path, claim.track.positions(keys), check)]] = False
            refreshed_later = True
    shown = claim.is_shown
    return Pictures(claim.pts[shown], claim.track.duration[shown], is_key[shown], refreshed_later)


def _grid(path: str, stream: av.VideoStream, claim: _Claim, middle: Middle) -> Grid | None:
    """The shown frames of a track of which `claim` has the first and last samples only; None if they are not even.

    The proof: in units of the step, composition times are a permutation of 0, 1, 2 ... that moves no sample by more
    than `_MAX_REORDER`. So what is shown, and what lies in the middle, follows from both ends.
    """
    step, number = middle.step, middle.num_samples
    start = int(claim.track.composition[:NUM_FIRST].min())
    place = np.arange(number, dtype=np.int32)
    if middle.ctts is not None:
        counts, times = middle.ctts
        offset = (times - start) // step
        if offset.min() < -_MAX_REORDER or offset.max() > _MAX_REORDER or (offset * step + start != times).any():
            return None
        place += offset if len(offset) == number else np.repeat(offset, counts)
        taken = np.zeros(number + 2 * _MAX_REORDER, dtype=np.bool_)
        taken[place + _MAX_REORDER] = True
        if not taken[_MAX_REORDER : number + _MAX_REORDER].all():
            return None
    elif start:
        return None
    check = KeyCheck(stream)
    some_are_key = middle.stss is not None and len(middle.stss) < number
    if check.is_h264 and some_are_key and _refreshed_later(path, middle.key_positions, check).any():
        return None
    shown = claim.pts[claim.is_shown]
    first_pts, last_pts = int(shown.min()), int(shown.max())
    keys = place if middle.stss is None else place[middle.stss]
    # Where the edit moved the picture, claim.pts did so too.
    keyframe_pts = np.sort(keys).astype(np.int64) * step + int(claim.pts[0]) - (int(claim.track.composition[0]) - start)
    keyframe_pts = keyframe_pts[(keyframe_pts >= first_pts) & (keyframe_pts <= last_pts)]
    rate = _average_rate(stream, claim.track, middle)
    if rate is None or (last_pts - first_pts) % step:
        return None
    return Grid(first_pts, step, (last_pts - first_pts) // step + 1, keyframe_pts, rate)


def _average_rate(stream: av.VideoStream, track: Track, middle: Middle) -> Fraction | None:
    """What FFmpeg would state for the whole track, if it states that for the shortened one by the same rule."""
    shortened = Fraction(track.timescale * track.num_samples, middle.total)
    whole = Fraction(track.timescale * middle.num_samples, middle.total)
    is_exact = max(whole.numerator, whole.denominator, shortened.numerator, shortened.denominator) <= _LARGEST_RATIONAL
    return whole if is_exact and as_fraction(stream.average_rate) == shortened else None


def _refreshed_later(path: str, positions: _Int64, check: KeyCheck) -> _Bool:
    """Whether the packets at positions [shape=(n, 2)] only begin a gradual refresh."""
    found = np.zeros(len(positions), dtype=np.bool_)
    with open(path, "rb", buffering=0) as file:
        for index, (begin, size) in enumerate(positions.tolist()):
            file.seek(begin)
            found[index] = check.is_refreshed_later(file.read(min(size, _KEY_BYTES)))
    return found
