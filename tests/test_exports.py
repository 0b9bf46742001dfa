"""The public names, and the one direction in which modules import each other."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import avloader

PACKAGE = Path(avloader.__file__).parent
FILES = {path.relative_to(PACKAGE.parent): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {".".join(name.with_suffix("").parts).removesuffix(".__init__"): path for name, path in FILES.items()}

# The way of the data: a stage is made of the stages above it, never of its own line or of those below it. A module
# that is not named here is a part of the stages that use it.
FLOW = [
    ["errors"],
    ["timeline", "resample", "workers"],
    ["annotations", "media", "offsets"],
    ["manifest"],
    ["plan", "audio", "video"],
    ["reading"],
    ["prepare"],
    ["features", "augment"],
    ["presets"],
    ["pipeline"],
    ["engine"],
    ["loader"],
    ["bench"],
    ["preview"],
    ["demo"],
    ["cli"],
]
LIGHT = [
    "timeline",
    "resample",
    "workers",
    "annotations",
    "media",
    "offsets",
    "manifest",
    "plan",
    "audio",
    "video",
    "reading",
    "prepare",
]


def imports_of(module: str) -> set[str]:
    """Everything that a module imports anywhere, but what only the type checker sees: "avloader.media", "torch"."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module is not None
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in inner if name in MODULES} or {node.module}
            if node.module == "avloader":  # what the package itself imports when it is first used
                found |= {
                    f"avloader.{avloader._LAZY[alias.name]}" for alias in node.names if alias.name in avloader._LAZY
                }
    return found - {"avloader"}


def reach_of(module: str) -> set[str]:
    """Everything that a module imports, and what that imports."""
    reached: set[str] = set()
    todo = [module]
    while todo:
        new = imports_of(todo.pop()) - reached
        reached |= new
        todo += [name for name in new if name in MODULES]
    return reached


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_itself_by_a_detour(module: str) -> None:
    assert module not in reach_of(module)


@pytest.mark.parametrize("level", range(len(FLOW)), ids=[" ".join(names) for names in FLOW])
def test_imports_point_one_way_along_the_flow(level: int) -> None:
    later = {name for names in FLOW[level:] for name in names}
    for name in FLOW[level]:
        stages = {reached.split(".")[1] for reached in reach_of(f"avloader.{name}") if reached in MODULES}
        assert not stages & (later - {name}), name


@pytest.mark.parametrize("name", LIGHT)
def test_what_needs_neither_torch_nor_dali_reaches_neither(name: str) -> None:
    reached = reach_of(f"avloader.{name}")
    assert not {root.split(".")[0] for root in reached} & {"torch", "nvidia"}
    assert "avloader.features" not in reached


@pytest.mark.parametrize("name", avloader.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(avloader, name).__name__ == name


def test_the_list_of_public_names_is_complete_and_sorted_into_modules() -> None:
    listed = set(avloader.__all__)
    assert len(listed) == len(avloader.__all__)
    assert set(avloader._LAZY) <= listed
    assert dir(avloader) == sorted(listed)
    offered = {
        *("AllPairs", "BinaryOffsets", "FixedOffsets", "GridOffsets", "OtherClip", "OtherStart"),
        *("AVLoader", "AVBatch", "AudioVisualPipeline", "Manifest", "build_manifest", "probe", "MediaInfo"),
        *("PrepareOptions", "prepare_manifest"),
        *("Spectrogram", "MelSpectrogram", "MFCC", "Decibels", "Ln", "Log10", "Affine", "Standardize", "Segments"),
        *("KaldiFilterBank", "SpeechFilterBank", "SpeechMFCC", "Waveform", "Preset"),
        *("AVLoaderError", "AnnotationError", "MediaError", "ManifestError", "DecodeError", "SyncError"),
    }
    assert offered == listed
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = avloader.no_such_name


@pytest.mark.parametrize("module", [module for module in MODULES if not module.endswith(("avloader", "__main__"))])
def test_every_module_says_what_it_offers(module: str) -> None:
    if module == "avloader.augment.kernels":
        pytest.importorskip("triton", reason="comes with PyTorch for GPUs")
    loaded = importlib.import_module(module)
    assert loaded.__doc__
    for name in loaded.__all__:
        assert hasattr(loaded, name)


SCRIPT = """
import sys
from avloader import Manifest, MelSpectrogram, ManifestError, build_manifest, probe
import avloader.check, avloader.plan, avloader.reading
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "nvidia", "librosa"}))
"""


def test_manifests_load_neither_torch_nor_dali_nor_librosa() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


BLOCKED = """
import sys
sys.modules["nvidia"] = None
from avloader import Manifest, build_manifest
try:
    from avloader import AVLoader
except ImportError as error:
    print(error)
"""


def test_without_dali_manifests_work_and_the_loader_says_what_it_needs() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=True)
    assert "avloader.AVLoader needs PyTorch and NVIDIA DALI" in done.stdout
