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
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))

# A module imports only from lines above its own, or from its own line.
FLOW = [
    ["errors", "py"],
    ["timeline", "keyed", "resample", "folders", "workers"],
    ["annotations"],
    ["mp4", "records"],
    ["media"],
    ["tables"],
    ["manifest"],
    ["check", "plan"],
    ["audio", "video"],
    ["reading"],
    ["features"],
    ["pipeline"],
    ["engine"],
    ["loader"],
    ["preview", "demo"],
    ["cli"],
    ["__init__", "__main__"],
]
LEVEL = {name: level for level, names in enumerate(FLOW) for name in names}
LIGHT = [
    *("errors", "timeline", "keyed", "resample", "folders", "workers", "annotations", "mp4", "records", "media"),
    *("tables", "manifest", "check", "plan", "audio", "video", "reading"),
]


def imports_of(module: str) -> set[str]:
    """Everything that a module imports anywhere, but what only the type checker sees: "avloader.media", "torch"."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
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
            found |= {f"avloader.{alias.name}" for alias in node.names} if node.module == "avloader" else {node.module}
    return found


def stage(module: str) -> str:
    """The first part of a module's name inside the package: "annotations/csv" and "annotations.csv" -> annotations."""
    return module.replace(".", "/").split("/")[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way_along_the_flow(module: str) -> None:
    assert stage(module) in LEVEL, f"place {module} in FLOW"
    for name in imports_of(module):
        if not name.startswith("avloader."):
            continue
        other = stage(name.removeprefix("avloader."))
        if other in LEVEL:  # else a public name that the package itself imports when it is first used
            assert LEVEL[other] <= LEVEL[stage(module)], f"{module} imports {other}"
        else:
            assert LEVEL[stage(module)] > LEVEL["loader"], f"{module} imports avloader.{other} from the package itself"


@pytest.mark.parametrize("module", [module for module in MODULES if stage(module) in LIGHT])
def test_what_runs_without_torch_and_dali_imports_neither(module: str) -> None:
    roots = {name.split(".")[0] for name in imports_of(module)}
    assert not roots & {"torch", "nvidia"}


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_loads_neither_torch_nor_dali(module: str) -> None:
    """Also not through what it imports; and not the features, which only the pipeline needs."""
    reached, todo = set(), [module]
    while todo:
        for name in imports_of(todo.pop()) - reached:
            reached.add(name)
            inner = name.removeprefix("avloader.").replace(".", "/")
            if name.startswith("avloader") and (PACKAGE / f"{inner}.py").exists():
                todo.append(inner)
            elif name.startswith("avloader") and (PACKAGE / inner / "__init__.py").exists():
                todo.append(f"{inner}/__init__")
    assert not {name.split(".")[0] for name in reached} & {"torch", "nvidia"}
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
        *("AVLoader", "AVBatch", "AudioVisualPipeline", "Manifest", "build_manifest", "probe", "MediaInfo"),
        *("Spectrogram", "MelSpectrogram", "MFCC", "Decibels", "Ln", "Log10"),
        *("AVLoaderError", "AnnotationError", "MediaError", "ManifestError", "DecodeError", "SyncError"),
    }
    assert offered == listed
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = avloader.no_such_name


@pytest.mark.parametrize("module", [module for module in MODULES if stage(module) not in ("__init__", "__main__")])
def test_every_module_says_what_it_offers(module: str) -> None:
    loaded = importlib.import_module(f"avloader.{module.replace('/', '.').removesuffix('.__init__')}")
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
