"""Clips per second of other decoders in a data loader, each as its documentation advises; `bench_cpu.py` runs it.

Runs with the Python of an environment of its own (``pip install av numpy torch torchcodec spdl decord2``), and needs
nothing of this package. Reads a job from standard input, as JSON: ``{"peer", "paths", "starts", "fps", "num_frames",
"size", "rate", "batch_size", "filters", "samples", "rounds"}``; `paths` and `starts`, in frames, tell the clips,
`filters` is a file with the mel filters, `samples` one to write the first clips to. Prints ``{"version",
"clips_per_second"}``.

Every clip lies in a file of its own. Every peer makes the same tensors: normalized frames (F, 3, H, W), mono sound, its
log-mel.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

Clip = tuple[torch.Tensor, torch.Tensor]  # uint8 [shape=(F, 3, H, W)], float32 [shape=(N,)]


class Torchcodec:
    """Exact seeks; scaling inside the decoder."""

    def __init__(self, job: dict[str, Any], path: str) -> None:
        from torchcodec.decoders import AudioDecoder, VideoDecoder
        from torchcodec.transforms import Resize

        size = (job["size"], job["size"])
        self._job = job
        self._video = VideoDecoder(path, num_ffmpeg_threads=1, transforms=[Resize(size)])
        self._audio = AudioDecoder(path, sample_rate=job["rate"], num_channels=1)

    def __call__(self, start: int) -> Clip:
        """The clip that begins with a frame."""
        count, fps = self._job["num_frames"], self._job["fps"]
        frames = self._video.get_frames_in_range(start, start + count).data
        sound = self._audio.get_samples_played_in_range(start / fps, (start + count) / fps).data[0]
        return frames, sound


class Spdl:
    """One call a stream, which demuxes, decodes, scales and resamples without Python's lock."""

    def __init__(self, job: dict[str, Any], path: str) -> None:
        import spdl.io

        self._job, self._io, self._path = job, spdl.io, path
        self._config = spdl.io.decode_config(decoder_options={"threads": "1"})
        size = job["size"]
        self._pictures = spdl.io.get_video_filter_desc(
            scale_width=size, scale_height=size, scale_mode=None, scale_algo="bilinear", pix_fmt="rgb24"
        )
        self._sound = spdl.io.get_audio_filter_desc(sample_rate=job["rate"], num_channels=1, sample_fmt="fltp")

    def __call__(self, start: int) -> Clip:
        """The clip that begins with a frame."""
        job, io = self._job, self._io
        half = 0.5 / job["fps"]  # it takes the frames that begin in the window
        window = start / job["fps"] - half, (start + job["num_frames"]) / job["fps"] - half
        packets = io.demux_video(self._path, timestamp=window)
        decoded = io.decode_packets(packets, decode_config=self._config, filter_desc=self._pictures)
        frames = io.to_numpy(io.convert_frames(decoded))[: job["num_frames"]]
        exact = window[0] + half, window[1] + half
        sound = io.to_numpy(io.load_audio(self._path, timestamp=exact, filter_desc=self._sound))
        return torch.from_numpy(frames).permute(0, 3, 1, 2), torch.from_numpy(sound[0])


class Decord:
    """The sound reader decodes the whole track when it is opened."""

    def __init__(self, job: dict[str, Any], path: str) -> None:
        import decord

        size = job["size"]
        self._job = job
        self._video = decord.VideoReader(path, width=size, height=size, num_threads=1)
        self._audio = decord.AudioReader(path, sample_rate=job["rate"], mono=True)

    def __call__(self, start: int) -> Clip:
        """The clip that begins with a frame."""
        job = self._job
        frames = self._video.get_batch(range(start, start + job["num_frames"])).asnumpy()
        first = round(start / job["fps"] * job["rate"])
        count = round(job["num_frames"] / job["fps"] * job["rate"])
        sound = np.asarray(self._audio[first : first + count].asnumpy()).reshape(-1)
        return torch.from_numpy(frames).permute(0, 3, 1, 2), torch.from_numpy(sound)


class Pyav:
    """Seek, decode, and one scaler and one resampler a clip."""

    def __init__(self, job: dict[str, Any], path: str) -> None:
        import av

        self._job, self._av = job, av
        self._video, self._audio = av.open(path), av.open(path)
        self._video.streams.video[0].codec_context.thread_count = 1
        self._scaler = av.video.reformatter.VideoReformatter()

    def __call__(self, start: int) -> Clip:
        """The clip that begins with a frame."""
        job, begin = self._job, start / self._job["fps"]
        stream = self._video.streams.video[0]
        assert stream.time_base is not None
        first = round(begin / stream.time_base) + (stream.start_time or 0)
        self._video.seek(first, stream=stream)
        frames = []
        for frame in self._video.decode(stream):
            if frame.pts >= first:
                scaled = self._scaler.reformat(frame, job["size"], job["size"], "rgb24", interpolation="BILINEAR")
                frames.append(scaled.to_ndarray())
            if len(frames) == job["num_frames"]:
                break
        return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2), torch.from_numpy(self._sound(begin))

    def _sound(self, begin: float) -> np.ndarray[Any, Any]:
        job = self._job
        count = round(job["num_frames"] / job["fps"] * job["rate"])
        stream = self._audio.streams.audio[0]
        assert stream.time_base is not None
        self._audio.seek(max(round((begin - 0.1) / stream.time_base), 0), stream=stream)
        resampler = self._av.AudioResampler(format="fltp", layout="mono", rate=job["rate"])
        pieces, at = [], None
        for frame in self._audio.decode(stream):
            if at is None:
                at = round(frame.time * job["rate"])
            pieces += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
            if at + sum(map(len, pieces)) >= round(begin * job["rate"]) + count:
                break
        first = round(begin * job["rate"]) - (at or 0)
        return np.concatenate(pieces)[first : first + count]


PEERS: dict[str, tuple[Callable[[dict[str, Any], str], Callable[[int], Clip]], str]] = {
    "torchcodec": (Torchcodec, "torchcodec"),
    "spdl": (Spdl, "spdl"),
    "decord2": (Decord, "decord2"),
    "pyav": (Pyav, "av"),
}


class Clips(torch.utils.data.Dataset[tuple[torch.Tensor, ...]]):
    """What a user of the peer would write: one item a clip."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._num_samples = round(job["num_frames"] / job["fps"] * job["rate"])
        self._filters = torch.from_numpy(np.load(job["filters"]))
        self._window = torch.hann_window(512)
        self._mean, self._std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))

    def __len__(self) -> int:
        return len(self._job["starts"])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        torch.set_num_threads(1)
        reader = PEERS[self._job["peer"]][0](self._job, self._job["paths"][index])
        frames, sound = reader(self._job["starts"][index])
        sound = torch.nn.functional.pad(sound, (0, max(self._num_samples - len(sound), 0)))[: self._num_samples]
        spectrum = torch.stft(sound, 512, 160, window=self._window, pad_mode="constant", return_complex=True).abs()
        mel = 10 * torch.log10((self._filters @ spectrum.square()).clamp(min=1e-10))
        return frames.contiguous().float().sub_(self._mean).div_(self._std), sound, mel


def batches(job: dict[str, Any], clips: Clips) -> Iterator[Any]:
    """The batches of one pass."""
    cores = len(os.sched_getaffinity(0))
    if job["peer"] == "spdl":  # threads, as its documentation advises, in place of a DataLoader
        from spdl.pipeline import PipelineBuilder

        builder = PipelineBuilder().add_source(range(len(clips))).pipe(clips.__getitem__, concurrency=cores)
        builder = builder.aggregate(job["batch_size"]).pipe(torch.utils.data.default_collate).add_sink(3)
        pipeline = builder.build(num_threads=cores + 1)
        with pipeline.auto_stop():
            yield from pipeline
    else:
        yield from torch.utils.data.DataLoader(clips, job["batch_size"], num_workers=cores)


def main() -> None:
    """Run one job."""
    job = json.load(sys.stdin)
    torch.set_num_threads(1)
    clips = Clips(job)
    items = [clips[index] for index in range(min(8, len(clips)))]
    frames, audio, mel = (torch.stack(part).numpy() for part in zip(*items, strict=True))
    np.savez(job["samples"], frames=frames, audio=audio, mel=mel)
    rates = []
    for _ in range(job["rounds"]):
        first_end, counted, first = 0.0, 0, 0
        for batch in batches(job, clips):
            counted += len(batch[0])
            if not first_end:  # what workers need to start is not counted
                first_end, first = time.perf_counter(), counted
        rates.append((counted - first) / (time.perf_counter() - first_end))
        assert counted == len(clips), counted
    print(json.dumps({"version": version(PEERS[job["peer"]][1]), "clips_per_second": rates}))


if __name__ == "__main__":
    main()
