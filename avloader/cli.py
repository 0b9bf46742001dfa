"""The command line: ``avloader demo | manifest | inspect | check | preview | prepare | presets | bench``.

Exit codes: 0 done; 1 a check failed, or `--strict` found a rejected row; 2 an error, told in one line on standard
error; 130 stopped by Ctrl-C. Heavy modules are imported by the commands that need them, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from avloader.errors import AVLoaderError

if TYPE_CHECKING:
    from avloader.media import AudioInfo, MediaInfo, VideoInfo

__all__ = ["main"]

OK, FAILED, ERROR, INTERRUPTED = 0, 1, 2, 130

_FORMATS = "auto, csv, jsonl, vggsound, audioset, avspeech, kinetics"  # spelled out: the readers import numpy


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; None: those of the process.

    Returns:
        The exit code. Only ``--help`` and unusable arguments raise `SystemExit`, as argparse does.
    """
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold what the terminal cannot show
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of a pipe (head, less) has seen enough; nothing is left to flush to at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        print("avloader: stopped", file=sys.stderr)
        return INTERRUPTED
    except (AVLoaderError, OSError, TypeError, ValueError) as error:
        # On one line, whatever a file name holds: an error is one record of a log.
        print(f"avloader {arguments.command}: error: {_one_line(_message(error, arguments))}", file=sys.stderr)
        return ERROR
    except ModuleNotFoundError as error:
        print(
            f"avloader {arguments.command}: error: this command needs the package {error.name!r}, which is not "
            "installed (there are wheels of DALI for Linux only).",
            file=sys.stderr,
        )
        return ERROR


class _Parser(argparse.ArgumentParser):
    """Tells a wrong argument in one line instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(ERROR, f"{self.prog}: error: {_one_line(message)} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="avloader",
        description="Batches of spectrograms and frames, provably in sync, from videos and a table of clips.",
        epilog=_examples(
            "avloader demo",
            "avloader manifest clips.csv --media-root videos --output manifests/train",
            "avloader preview manifests/train --output preview.png",
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    demo = _command(
        commands,
        "demo",
        _demo,
        "run the main job end to end on a bundled real clip",
        "Writes annotations, a manifest and a picture of one clip, iterates batches, checks them against a plain "
        "linear decode, and prints what was delivered and how fast.",
        "avloader demo",
        "avloader demo --device cpu --output /tmp/demo --json",
    )
    demo.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu or gpu (default: auto)")
    demo.add_argument("--output", default="demo", metavar="DIR", help="folder to write (default: demo)")

    manifest = _command(
        commands,
        "manifest",
        _manifest,
        "resolve annotations on their media and write a manifest",
        "Reads headers and packets of the media, never decodes. Every annotation ends in the manifest or, with a "
        "reason, in its rejected.csv. Exit code 0 if any row was kept.",
        "avloader manifest clips.csv --media-root videos --output manifests/train",
        "avloader manifest vggsound.csv --format vggsound --media-root vgg --output manifests/vgg --workers 8",
        "avloader manifest clips.csv --media-root videos --output manifests/train --strict --json",
        "avloader manifest speech.csv --media-root speech --output manifests/speech --streams audio",
    )
    manifest.add_argument("annotations", metavar="ANNOTATIONS", help="table of clips, for example path,start,end,label")
    manifest.add_argument("--media-root", required=True, metavar="DIR", help="folder that media paths start from")
    manifest.add_argument("--output", required=True, metavar="DIR", help="manifest folder to write")
    manifest.add_argument("--format", default="auto", metavar="NAME", help=f"{_FORMATS} (default: auto)")
    manifest.add_argument("--media-template", metavar="TEXT", help='media path from fields, as "{id}_{start:06d}.mp4"')
    manifest.add_argument(
        "--streams",
        choices=("both", "audio", "video"),
        default="both",
        help="what rows hold: picture and sound, or one of them (default: both)",
    )
    manifest.add_argument(
        "--workers", type=_positive, metavar="N", help="processes that read media (default: one a core)"
    )
    _add_engine(manifest)
    manifest.add_argument("--strict", action="store_true", help="exit with 1 if any row was rejected")

    inspect = _command(
        commands,
        "inspect",
        _inspect,
        "facts of one medium, and what each engine can do with it",
        "Streams, starts, rates, constant or variable frame rate, key frames, holes in the sound; which engine can "
        "take the file, and why not. Never decodes.",
        "avloader inspect video.mp4",
        "avloader inspect video.mp4 --json",
    )
    inspect.add_argument("file", metavar="FILE", help="a video or sound file")

    check = _command(
        commands,
        "check",
        _check,
        "are the media unchanged, does a linear decode agree",
        "Compares every medium with what the manifest recorded, and N rows with a plain linear decode of their whole "
        "files. Exit code 1 if anything disagrees.",
        "avloader check manifests/train",
        "avloader check manifests/train --sample 100 --json",
    )
    check.add_argument("manifest", metavar="MANIFEST", help="a manifest folder")
    check.add_argument("--sample", type=_count, default=8, metavar="N", help="rows to decode, 0 for none (default: 8)")

    preview = _command(
        commands,
        "preview",
        _preview,
        "a picture of one clip: frames over the spectrogram",
        "Draws the frames of a row as a film strip over the log-mel spectrogram of its sound, on one time axis. The "
        "left edge of each thumbnail stands at the time at which its frame is shown. With --augment the clip before "
        "and after augmentation, and what was drawn. The text names transforms of avloader.augment as in Python, with "
        "commas between several; where one takes a bank of sounds it has the path of a file or folder.",
        "avloader preview manifests/train --output preview.png",
        "avloader preview manifests/train --output row7.png --row 7 --frames 12 --stride 2 --width 2400",
        "avloader preview manifests/train --output noisy.png --augment \"AddBackgroundNoise('noises'), Gain(p=1)\"",
        'avloader preview manifests/train --output fast.png --augment "JointSpeed(p=1), RandomCrop(112)" --epoch 3',
    )
    preview.add_argument("manifest", metavar="MANIFEST", help="a manifest folder")
    preview.add_argument("--output", required=True, metavar="PNG", help="picture to write")
    preview.add_argument("--row", type=_count, default=0, metavar="N", help="manifest row (default: 0)")
    preview.add_argument("--frames", type=_positive, default=16, metavar="N", help="frames to show (default: 16)")
    preview.add_argument(
        "--stride", type=_positive, default=1, metavar="N", help="source frames from one to the next (default: 1)"
    )
    preview.add_argument("--augment", metavar="TEXT", help='transforms such as "Gain(p=1), HorizontalFlip(p=1)"')
    preview.add_argument("--seed", type=_count, default=0, metavar="N", help="of what is drawn (default: 0)")
    preview.add_argument("--epoch", type=_count, default=0, metavar="N", help="of what is drawn (default: 0)")
    preview.add_argument("--width", type=_positive, default=1600, metavar="PIXELS", help="600 to 8000 (default: 1600)")
    preview.add_argument("--height", type=_positive, metavar="PIXELS", help="400 to 8000 (default: as the frames need)")

    prepare = _command(
        commands,
        "prepare",
        _prepare,
        "conform media to what decodes fastest, and write a manifest of the result",
        "Writes DIR/media (H.264 mp4 of constant rate with short closed groups; mono 16-bit sound whose sample 0 is "
        "media time 0), DIR/manifest (a manifest like any other, with the same rows) and DIR/rows.csv (where each row "
        "came from). Stopped at any moment, it goes on where it was when it is run again. Exit code 0 if any row was "
        "kept.",
        "avloader prepare manifests/train --output prepared/train",
        "avloader prepare manifests/train --output prepared/train --fps source --short-side 256 --sample-rate 16000",
        "avloader prepare manifests/train --output prepared/clips --clips-only --margin 0.5 --box 280,0,720,720",
        "avloader prepare manifests/train --output prepared/sound --sound-only --sound-format flac",
        "avloader prepare manifests/train --output /shared/train --engine ray --json",
    )
    prepare.add_argument("manifest", metavar="MANIFEST", help="a manifest folder")
    prepare.add_argument("--output", required=True, metavar="DIR", help="folder to write, or to go on with")
    prepare.add_argument(
        "--fps",
        type=_frame_rate,
        metavar="RATE",
        help='frames per second, as 25 or 30000/1001, or "source" (default: 25)',
    )
    prepare.add_argument("--gop", type=_positive, metavar="N", help="frames between key frames (default: 12)")
    prepare.add_argument("--crf", type=_count, metavar="N", help="x264's rate factor: less is better (default: 18)")
    prepare.add_argument(
        "--short-side", type=_positive, metavar="PIXELS", help="scale larger pictures down to this (default: as stored)"
    )
    prepare.add_argument(
        "--box",
        type=_box,
        metavar="LEFT,TOP,WIDTH,HEIGHT",
        help="keep only these pixels, before scaling (default: all)",
    )
    prepare.add_argument("--sample-rate", type=_positive, metavar="HZ", help="of the sound (default: the source's)")
    prepare.add_argument("--sound-format", choices=("wav", "flac"), help="flac is smaller, wav faster (default: wav)")
    prepare.add_argument("--sound-only", action="store_true", help="cache the sound, leave pictures where they are")
    prepare.add_argument(
        "--clips-only", action="store_true", help="keep only what lies in rows, and a margin around it"
    )
    prepare.add_argument(
        "--margin", type=_seconds, metavar="SECONDS", help="kept around rows with --clips-only (default: 1)"
    )
    prepare.add_argument("--workers", type=_positive, metavar="N", help="media at a time (default: one a core)")
    _add_engine(prepare)
    prepare.add_argument("--strict", action="store_true", help="exit with 1 if any row was rejected")
    presets = _command(
        commands,
        "presets",
        _presets,
        "input contracts of published models",
        "Lists the presets of AVLoader, or prints the contract of one: what its model's own code would compute, where "
        "that is written, and what differs.",
        "avloader presets",
        "avloader presets wav2lip",
        "avloader presets wav2lip --json",
    )
    presets.add_argument("name", nargs="?", metavar="NAME", help="a preset (default: list them all)")

    bench = _command(
        commands,
        "bench",
        _bench,
        "how fast the loader is with a manifest on this machine",
        "Measures the loader on shuffled clips, with sound and log-mel features: its rate, its memory, how long a "
        "training step that uses 80 % of the rate waits for its batch, and what decodes the pictures, alone. The first "
        "third of each measurement is to warm up.",
        "avloader bench manifests/train",
        "avloader bench manifests/train --batch-size 32 --num-frames 8 --size 112,112 --seconds 30",
        "avloader bench manifests/train --device gpu --decode nvdec --json",
    )
    bench.add_argument("manifest", metavar="MANIFEST", help="a manifest folder")
    bench.add_argument("--batch-size", type=_positive, default=16, metavar="N", help="clips of a batch (default: 16)")
    bench.add_argument("--num-frames", type=_positive, default=16, metavar="N", help="frames of a clip (default: 16)")
    bench.add_argument(
        "--stride", type=_positive, default=1, metavar="N", help="source frames from one to the next (default: 1)"
    )
    bench.add_argument(
        "--fps",
        type=_frame_rate,
        default="source",
        metavar="RATE",
        help='frames per second, as 25 or 30000/1001, or "source" (default: source)',
    )
    bench.add_argument(
        "--size", type=_size, default=(224, 224), metavar="HEIGHT,WIDTH", help='or "stored" (default: 224,224)'
    )
    bench.add_argument(
        "--sample-rate", type=_positive, default=16000, metavar="HZ", help="of the sound (default: 16000)"
    )
    bench.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, gpu or cuda:1 (default: auto)")
    bench.add_argument("--decode", choices=("auto", "nvdec", "cpu"), default="auto", help="(default: auto)")
    bench.add_argument(
        "--workers", type=_positive, metavar="N", help="processes that decode (default: as the loader's)"
    )
    bench.add_argument(
        "--seconds", type=_seconds, default=10, metavar="SECONDS", help="of each of three measurements (default: 10)"
    )
    return parser


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        default="local",
        metavar="NAME",
        help="local: this machine; ray: a Ray cluster, which RAY_ADDRESS names (default: local)",
    )


def _command(
    commands: Any, name: str, run: Any, summary: str, description: str, *examples: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=_examples(*examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output and nothing else")
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: reading package metadata is slow."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"avloader {version('avloader')}")
        parser.exit(OK)


def _demo(arguments: argparse.Namespace) -> int:
    from avloader.demo import run_demo

    report = run_demo(arguments.output, device=arguments.device, say=_quiet if arguments.json else print)
    if arguments.json:
        _print_json(report.to_json())
        return OK if report.failures == 0 else FAILED
    print()
    _print_table(("field", "shape and type", "first clip"), report.fields)
    print()
    _print_pairs(report.facts)
    return OK if report.failures == 0 else FAILED


def _manifest(arguments: argparse.Namespace) -> int:
    from avloader.manifest import build_manifest

    manifest = build_manifest(
        arguments.annotations,
        media_root=arguments.media_root,
        output=arguments.output,
        format=arguments.format,
        media_template=arguments.media_template,
        streams=arguments.streams,
        num_workers=arguments.workers,
        engine=arguments.engine,
    )
    num_labels = len({*manifest.label.tolist()} - {-1})  # -1: without label
    rejected = manifest.rejected()
    reasons = Counter(row["code"] for row in rejected).most_common()
    if arguments.json:
        _print_json(
            {
                "manifest": manifest.path,
                "streams": manifest.streams,
                "kept": len(manifest),
                "rejected": len(rejected),
                "reasons": dict(reasons),
                "media": manifest.num_media,
                "labels": num_labels,
                "fingerprint": manifest.fingerprint,
            }
        )
    else:
        firsts = {row["code"]: f"line {row['line']}: {row['message']}" for row in reversed(rejected)}
        rows = [
            (
                "kept",
                f"{len(manifest)}",
                f"{_plural(manifest.num_media, 'medium', 'media')}, {_plural(num_labels, 'label')}",
            )
        ]
        rows += [(code, f"{count}", firsts[code]) for code, count in reasons]
        _print_table(("", "rows", "first reason"), rows)
        print(f"\nmanifest: {manifest.path}")
        if rejected:
            print(f"rejected: {Path(manifest.path, 'rejected.csv')}")
        if manifest.streams == "both":
            print(f"next:     avloader preview {shlex.quote(manifest.path)} --output preview.png")
    return FAILED if arguments.strict and rejected else OK


def _inspect(arguments: argparse.Namespace) -> int:
    from avloader.media import probe

    info = probe(arguments.file)
    if arguments.json:
        _print_json(_media_json(info))
        return OK
    pairs = [
        ("file", info.path),
        (
            "container",
            f"{info.container}, {info.size:,} bytes, media time 0 is {float(info.origin):.6f} s on its clocks",
        ),
    ]
    pairs += _video_facts(info.video) if info.video else [("picture", "none")]
    pairs += _audio_facts(info.audio) if info.audio else [("sound", "none")]
    for name, reason in _engines(info).items():
        pairs.append((f"{name} engine", "no: " + reason if reason else "yes"))
    _print_pairs(pairs)
    return OK


def _check(arguments: argparse.Namespace) -> int:
    from avloader.check import check_manifest
    from avloader.manifest import Manifest

    manifest = Manifest.open(arguments.manifest, check_media=False)
    with _busy(f"decoding media of {_plural(min(arguments.sample, len(manifest)), 'row')}"):
        findings = check_manifest(manifest, sample=arguments.sample)
    decoded = min(arguments.sample, len(manifest))
    if arguments.json:
        listed = [{"row": each.row, "path": each.path, "what": each.what, "remedy": each.remedy} for each in findings]
        _print_json(
            {
                "manifest": manifest.path,
                "rows": len(manifest),
                "media": manifest.num_media,
                "sample": decoded,
                "findings": listed,
            }
        )
    elif findings:
        rows = [(str("" if each.row is None else each.row), each.path, each.what, each.remedy) for each in findings]
        _print_table(("row", "file", "what", "remedy"), rows)
        print(f"\n{_plural(len(findings), 'finding')} in {manifest.path}")
    else:
        media = _plural(manifest.num_media, "medium", "media")
        print(f"{manifest.path}: all well. {_plural(len(manifest), 'row')}; {media} unchanged; ", end="")
        print(f"{_plural(decoded, 'row')} compared with a linear decode")
    return FAILED if findings else OK


def _preview(arguments: argparse.Namespace) -> int:
    from avloader import preview
    from avloader.manifest import Manifest

    manifest = Manifest.open(arguments.manifest)
    with _busy("drawing"):
        try:
            shown = {"num_frames": arguments.frames, "stride": arguments.stride}
            clip = preview.read_clip(manifest, arguments.row, **shown)
        except AVLoaderError as error:
            raise error.at_row(arguments.row) from error
        pair = None
        if arguments.augment is not None:
            from avloader.augment.text import parse_augment

            node = parse_augment(arguments.augment, sample_rate=clip.sample_rate)
            drawn = {"seed": arguments.seed, "epoch": arguments.epoch}
            pair = preview.augment_clip(manifest, arguments.row, node, **shown, **drawn)
        size = {"width": arguments.width, "height": arguments.height}
        figure = preview.draw_clip(clip, **size) if pair is None else preview.draw_pair(pair, **size)
        preview.save(figure, arguments.output)
    if arguments.json:
        _print_json(
            {
                "picture": arguments.output,
                "row": arguments.row,
                "frame_seconds": clip.frame_seconds.tolist(),
                "audio_start_seconds": clip.audio_start_seconds,
                **({} if pair is None else {"augmentation": list(pair.drawn)}),
            }
        )
    else:
        print(
            f"{arguments.output}: row {arguments.row}, {_plural(len(clip.frames), 'frame')} from "
            f"{clip.frame_seconds[0]:.3f} s to {clip.stop_seconds:.3f} s"
        )
    return OK


def _prepare(arguments: argparse.Namespace) -> int:
    from avloader.prepare import PrepareOptions, prepare_manifest

    names = ("gop", "crf", "short_side", "box", "sample_rate", "sound_format", "sound_only", "clips_only", "margin")
    given = {name: getattr(arguments, name) for name in names}
    options = {name: value for name, value in given.items() if value is not None}
    if arguments.fps is not None:
        options["fps"] = None if arguments.fps == "source" else arguments.fps
    prepared = prepare_manifest(
        arguments.manifest,
        output=arguments.output,
        options=PrepareOptions(**options),
        engine=arguments.engine,
        num_workers=arguments.workers,
    )
    manifest, rejected = prepared.manifest, prepared.manifest.rejected()
    reasons = Counter(row["code"] for row in rejected).most_common()
    if arguments.json:
        _print_json(
            {
                "manifest": manifest.path,
                "kept": len(manifest),
                "rejected": len(rejected),
                "reasons": dict(reasons),
                "files": prepared.num_files,
                "bytes": prepared.num_bytes,
                "fingerprint": manifest.fingerprint,
            }
        )
        return FAILED if arguments.strict and rejected else OK
    firsts = {row["code"]: row["message"] for row in reversed(rejected)}
    size = f"{_plural(prepared.num_files, 'file')}, {prepared.num_bytes / 10**6:,.1f} MB"
    rows = [("kept", f"{len(manifest)}", size)]
    _print_table(("", "rows", "first reason"), rows + [(code, f"{count}", firsts[code]) for code, count in reasons])
    print(f"\nmanifest: {manifest.path}")
    if rejected:
        print(f"rejected: {Path(manifest.path, 'rejected.csv')}")
    return FAILED if arguments.strict and rejected else OK


def _presets(arguments: argparse.Namespace) -> int:
    from avloader.presets import PRESETS, find_preset

    if arguments.name is None:
        if arguments.json:
            _print_json({preset.name: preset.title for preset in PRESETS.values()})
        else:
            rows = [(preset.name, preset.title, preset.source.split(":")[0]) for preset in PRESETS.values()]
            _print_table(("preset", "input of", "source"), rows)
        return OK
    preset = find_preset(arguments.name)
    options = {name: _said(value) for name, value in preset.options.items()}
    if arguments.json:
        _print_json(
            {
                "name": preset.name,
                "title": preset.title,
                "source": preset.source,
                "frames_layout": preset.frames_layout,
                "sound_layout": preset.sound_layout,
                "options": options,
                "remarks": list(preset.remarks),
            }
        )
        return OK
    pairs = [("preset", f"{preset.name}: {preset.title}"), ("source", preset.source)]
    pairs += [("pictures", preset.frames_layout), ("sound", preset.sound_layout), *options.items()]
    _print_pairs([*pairs, *(("remark", remark) for remark in preset.remarks)])
    return OK


def _said(value: object) -> str:
    """A value as it is written in Python, of options only what is not the default."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return str(value) if isinstance(value, Fraction) else repr(value)
    given = [
        f"{field.name}={_said(getattr(value, field.name))}"
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != field.default
    ]
    return f"{type(value).__name__}({', '.join(given)})"


def _bench(arguments: argparse.Namespace) -> int:
    from avloader.bench import run_bench

    names = ("batch_size", "num_frames", "stride", "size", "sample_rate", "device", "decode")
    options: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    report = run_bench(
        arguments.manifest,
        seconds=float(arguments.seconds),
        fps=None if arguments.fps == "source" else arguments.fps,
        num_workers=arguments.workers,
        **options,
    )
    if arguments.json:
        _print_json(dataclasses.asdict(report))
        return OK
    rate, share = report.decoder_clips_per_second, report.decoder_share
    memory = [("memory", report.memory_bytes, "of the process with its workers")]
    memory += [("", report.gpu_memory_bytes, "of the GPU")] if report.gpu_memory_bytes is not None else []
    counted = f"{_plural(report.clips, 'clip')} in {report.seconds:.1f} s"
    why = "" if share is None or share <= 1.05 else "the CPU decodes beside it"
    if why and "libavcodec" in report.decoder:
        why = "clips near each other are decoded together"
    rows = [
        ("rate", f"{report.clips_per_second:,.1f} clips/s", counted),
        ("", f"{report.frames_per_second:,.0f} frames/s", ""),
        ("decoder alone", "" if rate is None else f"{rate:,.1f} clips/s", report.decoder),
        ("share of it", "" if share is None else f"{share:.0%}", why),
        ("first batch", f"{report.first_batch_seconds:.2f} s", "from opening the manifest on"),
        ("training step", _milliseconds(report.step_seconds), "uses 80 % of the rate"),
        ("waits, median", _milliseconds(report.wait_median_seconds), f"of {_plural(report.steps, 'step')}"),
        ("waits, 99 %", _milliseconds(report.wait_p99_seconds), "or less"),
        ("waits, longest", _milliseconds(report.wait_longest_seconds), ""),
        *((name, "unknown" if size is None else f"{size / 1e6:,.0f} MB", what) for name, size, what in memory),
    ]
    _print_table(("", "measured", ""), rows)
    print()
    pairs = [("manifest", f"{report.manifest}: {_plural(report.rows, 'row')}"), ("engine", report.engine)]
    if report.skipped_rows:
        pairs.append(("skipped", f"clips of {_plural(report.skipped_rows, 'row')}, too short or damaged"))
    _print_pairs(pairs + [("fallback", sentence) for sentence in report.fallbacks])
    return OK


def _video_facts(video: VideoInfo) -> list[tuple[str, str]]:
    times = video.times
    rate = (
        f"constant {_rate(video.frame_rate)}"
        if video.frame_rate
        else f"variable, {_rate(video.average_rate)} on average"
    )
    turned = f", shown turned by {video.rotation}°" if video.rotation else ""
    lengths = _group_lengths(video)
    shortest, longest = min(lengths, default=0), max(lengths, default=0)
    groups = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
    return [
        ("picture", f"{video.codec} {video.pixel_format}, {video.width}x{video.height}{turned}"),
        ("frames", f"{len(times):,} at {rate} frames/s (from {video.times_from})"),
        ("shown", f"{float(times.start_seconds):.6f} s to {float(times.stop_seconds):.6f} s"),
        ("key frames", f"{len(video.keyframe_pts):,}, {groups} frames each"),
    ]


def _audio_facts(audio: AudioInfo) -> list[tuple[str, str]]:
    facts = [
        ("sound", f"{audio.codec}, {audio.sample_rate} Hz, {_plural(audio.num_channels, 'channel')}"),
        (
            "heard",
            f"{float(audio.start_seconds):.6f} s to {float(audio.stop_seconds):.6f} s ({audio.num_samples:,} samples)",
        ),
    ]
    for start, stop in audio.gaps:
        first, last = (float(audio.start_seconds + Fraction(sample, audio.sample_rate)) for sample in (start, stop))
        facts.append(("hole", f"{first:.6f} s to {last:.6f} s"))
    return facts


def _group_lengths(video: VideoInfo) -> list[int]:
    """Frames from each key frame to the next, and from the last to the end."""
    starts = [video.times.first_frame_from(video.times.pts_to_media_time(int(pts))) for pts in video.keyframe_pts]
    return [stop - start for start, stop in zip(starts, [*starts[1:], len(video.times)], strict=True)]


def _engines(info: MediaInfo) -> dict[str, str]:
    """Why each engine cannot deliver clips of this medium; "" if it can."""
    missing = (
        "no picture"
        if info.video is None
        else "no sound; name a side-car file in audio_path"
        if info.audio is None
        else ""
    )
    return {"NVDEC": info.nvdec_reason or missing, "CPU": missing}


def _media_json(info: MediaInfo) -> dict[str, Any]:
    video, audio = info.video, info.audio
    return {
        "path": info.path,
        "size": info.size,
        "container": info.container,
        "origin_seconds": float(info.origin),
        "video": video
        and {
            "codec": video.codec,
            "pixel_format": video.pixel_format,
            "width": video.width,
            "height": video.height,
            "rotation": video.rotation,
            "num_frames": len(video.times),
            "frame_rate": video.frame_rate and str(video.frame_rate),
            "average_rate": str(video.average_rate),
            "time_base": str(video.times.time_base),
            "start_seconds": float(video.times.start_seconds),
            "stop_seconds": float(video.times.stop_seconds),
            "num_keyframes": len(video.keyframe_pts),
            "longest_group": max(_group_lengths(video), default=0),
            "times_from": video.times_from,
        },
        "audio": audio
        and {
            "codec": audio.codec,
            "sample_rate": audio.sample_rate,
            "num_channels": audio.num_channels,
            "num_samples": audio.num_samples,
            "start_seconds": float(audio.start_seconds),
            "stop_seconds": float(audio.stop_seconds),
            "gaps": [list(gap) for gap in audio.gaps],
        },
        "engines": {name.lower(): {"usable": not reason, "reason": reason} for name, reason in _engines(info).items()},
    }


@contextlib.contextmanager
def _busy(what: str) -> Iterator[None]:
    """Show on standard error that something is going on, if a person is looking."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A drawn table on a terminal; elsewhere plain columns, whole and without control characters."""
    if sys.stdout.isatty():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
        for index, name in enumerate(header):
            table.add_column(name, style="bold cyan" if index == 0 else "", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    lines = [list(header), *(list(row) for row in rows)] if any(header) else [list(row) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Names and values, the names in one column."""
    width = max(len(name) for name, _ in pairs) + 2
    bold, plain = ("\x1b[1;36m", "\x1b[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    for name, value in pairs:
        print(f"{bold}{name.ljust(width)}{plain}{value}")


def _print_json(value: object) -> None:
    is_unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    print(json.dumps(value, indent=2, ensure_ascii=not is_unicode))


def _quiet(_: str) -> None:
    """Say nothing: standard output belongs to the JSON object."""


def _examples(*lines: str) -> str:
    return "\n".join(["examples:", *(f"  {line}" for line in lines)])


def _positive(text: str) -> int:
    return _integer(text, 1)


def _count(text: str) -> int:
    return _integer(text, 0)


def _frame_rate(text: str) -> Fraction | str:
    from avloader.timeline import parse_rational

    try:
        return text if text == "source" else parse_rational(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> Fraction:
    from avloader.timeline import parse_seconds

    try:
        return parse_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _size(text: str) -> tuple[int, ...] | None:
    if text == "stored":
        return None
    sides = text.split(",")
    if len(sides) != 2:
        raise argparse.ArgumentTypeError(f'{text!r} is not HEIGHT,WIDTH or "stored"')
    return tuple(_positive(side) for side in sides)


def _box(text: str) -> tuple[int, ...]:
    numbers = text.split(",")
    if len(numbers) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not LEFT,TOP,WIDTH,HEIGHT")
    return tuple(_count(number) for number in numbers)


def _integer(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least {least}")
    return number


def _plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _rate(rate: Fraction) -> str:
    return str(rate) if rate.denominator == 1 else f"{float(rate):.3f} ({rate})"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"


def _message(error: Exception, arguments: argparse.Namespace) -> str:
    if isinstance(error, (TypeError, ValueError)):
        # Python names the argument first, as "width=9000 is out of range"; here it is an option.
        name = re.split(r"\W", str(error), maxsplit=1)[0]
        return f"--{name.replace('_', '-')}{str(error)[len(name) :]}" if name in vars(arguments) else str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror[0].lower()}{error.strerror[1:]}."
    return str(error)


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
