"""vtc: visual-token compression. Make a vision-language model cheaper to run with one call.

Importing this package imports nothing else: each public name brings its module along when it is first used (PEP 562).
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"  # pyproject.toml reads it here

if TYPE_CHECKING:
    from vtc import engine as engine
    from vtc import methods as methods
    from vtc import models as models
    from vtc import ops as ops
    from vtc.api import encode, load, report, select, unwrap, wrap, wrapped
    from vtc.calibration.calibrate import Calibrated, calibrate
    from vtc.draw.filmstrip import frame_overlay
    from vtc.draw.overlays import overlay
    from vtc.engine.encoded import Encoded
    from vtc.held import Held
    from vtc.kv_bytes import CacheBytes, cache_bytes
    from vtc.media.limits import ClipLimits
    from vtc.media.pictures import load_picture
    from vtc.media.prompts import clip_inputs, prepare, prompt, seen
    from vtc.media.smaller import Resized, downsample, downsample_all
    from vtc.media.video import Clip, load_clip
    from vtc.methods.adakv import AdaKV
    from vtc.methods.base.cache import CacheMethod
    from vtc.methods.base.calibrated import CalibratedMethod
    from vtc.methods.base.encoder import BlockTokens, DroppingMethod, EncoderMethod, Joined, MergingMethod
    from vtc.methods.base.greedy import GreedyMethod
    from vtc.methods.base.index import MethodInfo, Paper
    from vtc.methods.base.layer import LayerMethod
    from vtc.methods.base.method import Method, top_k
    from vtc.methods.base.patches import PatchMethod
    from vtc.methods.base.pixels import PixelMethod
    from vtc.methods.base.registry import list_methods, resolve
    from vtc.methods.base.trained import TrainedMethod
    from vtc.methods.cdpruner import CDPruner
    from vtc.methods.d2o import D2O
    from vtc.methods.dart import DART
    from vtc.methods.divprune import DivPrune
    from vtc.methods.downsample import Downsample
    from vtc.methods.dycoke import DyCoke
    from vtc.methods.ems import EMS
    from vtc.methods.evs import EVS
    from vtc.methods.fastv import FastV
    from vtc.methods.fastvid import FastVID
    from vtc.methods.flashvid import FlashVID
    from vtc.methods.framededupe import FrameDedupe
    from vtc.methods.framefusion import FrameFusion
    from vtc.methods.globalcom2 import GlobalCom2
    from vtc.methods.h2o import H2O
    from vtc.methods.hiprune import HiPrune
    from vtc.methods.hired import HiRED
    from vtc.methods.holitom import HoliTom
    from vtc.methods.holov import HoloV
    from vtc.methods.keydiff import KeyDiff
    from vtc.methods.knorm import KNorm
    from vtc.methods.late_step import LateStep
    from vtc.methods.lookm import LookM
    from vtc.methods.minicache import MiniCache
    from vtc.methods.mmtok import MMTok
    from vtc.methods.mustdrop import MustDrop
    from vtc.methods.pixelprune import PixelPrune
    from vtc.methods.pool import Pool
    from vtc.methods.prumerge import PruMerge
    from vtc.methods.prunesid import PruneSID
    from vtc.methods.prunevid import PruneVid
    from vtc.methods.pyramiddrop import PyramidDrop
    from vtc.methods.pyramidkv import PyramidKV
    from vtc.methods.quota import QuoTA
    from vtc.methods.random import Random
    from vtc.methods.random_rows import RandomRows
    from vtc.methods.razor import Razor
    from vtc.methods.recoverable import Recoverable
    from vtc.methods.scissorhands import Scissorhands
    from vtc.methods.scope import SCOPE
    from vtc.methods.shared.clip_scorer import OpenClipScorer
    from vtc.methods.shared.words import question_words
    from vtc.methods.snapkv import SnapKV
    from vtc.methods.sparsevlm import SparseVLM
    from vtc.methods.streaming import Streaming
    from vtc.methods.todre import ToDRE
    from vtc.methods.tome import PiToMe, ToMe
    from vtc.methods.transprune import TransPrune
    from vtc.methods.uniform_frames import UniformFrames
    from vtc.methods.vflowopt import VFlowOpt
    from vtc.methods.vidcom2 import VidCom2
    from vtc.methods.visiondrop import VisionDrop
    from vtc.methods.visionzip import VisionZip
    from vtc.methods.vispruner import VisPruner
    from vtc.methods.vl_cache import VLCache
    from vtc.methods.vqtoken import VQToken
    from vtc.methods.vscan import VScan
    from vtc.methods.vtc_cls import VTCCLS
    from vtc.methods.zerotprune import ZeroTPrune
    from vtc.models import list_families, register_adapter
    from vtc.models import list_families as supported
    from vtc.models.family import Adapter, square_layout
    from vtc.proof.results import Checked
    from vtc.proof.run import check
    from vtc.reports import Report
    from vtc.selection import Selection
    from vtc.signals import VisualTokens
    from vtc.training.loop import Trained, train
    from vtc.training.samples import Sample, read_samples

__all__ = [
    "D2O",
    "DART",
    "EMS",
    "EVS",
    "H2O",
    "SCOPE",
    "VTCCLS",
    "AdaKV",
    "Adapter",
    "BlockTokens",
    "CDPruner",
    "CacheBytes",
    "CacheMethod",
    "Calibrated",
    "CalibratedMethod",
    "Checked",
    "Clip",
    "ClipLimits",
    "DivPrune",
    "Downsample",
    "DroppingMethod",
    "DyCoke",
    "Encoded",
    "EncoderMethod",
    "FastV",
    "FastVID",
    "FlashVID",
    "FrameDedupe",
    "FrameFusion",
    "GlobalCom2",
    "GreedyMethod",
    "Held",
    "HiPrune",
    "HiRED",
    "HoliTom",
    "HoloV",
    "Joined",
    "KNorm",
    "KeyDiff",
    "LateStep",
    "LayerMethod",
    "LookM",
    "MMTok",
    "MergingMethod",
    "Method",
    "MethodInfo",
    "MiniCache",
    "MustDrop",
    "OpenClipScorer",
    "Paper",
    "PatchMethod",
    "PiToMe",
    "PixelMethod",
    "PixelPrune",
    "Pool",
    "PruMerge",
    "PruneSID",
    "PruneVid",
    "PyramidDrop",
    "PyramidKV",
    "QuoTA",
    "Random",
    "RandomRows",
    "Razor",
    "Recoverable",
    "Report",
    "Resized",
    "Sample",
    "Scissorhands",
    "Selection",
    "SnapKV",
    "SparseVLM",
    "Streaming",
    "ToDRE",
    "ToMe",
    "Trained",
    "TrainedMethod",
    "TransPrune",
    "UniformFrames",
    "VFlowOpt",
    "VLCache",
    "VQToken",
    "VScan",
    "VidCom2",
    "VisPruner",
    "VisionDrop",
    "VisionZip",
    "VisualTokens",
    "ZeroTPrune",
    "__version__",
    "cache_bytes",
    "calibrate",
    "check",
    "clip_inputs",
    "downsample",
    "downsample_all",
    "encode",
    "frame_overlay",
    "list_families",
    "list_methods",
    "load",
    "load_clip",
    "load_picture",
    "overlay",
    "prepare",
    "prompt",
    "question_words",
    "read_samples",
    "register_adapter",
    "report",
    "resolve",
    "seen",
    "select",
    "square_layout",
    "supported",
    "top_k",
    "train",
    "unwrap",
    "wrap",
    "wrapped",
]

#: Public name -> the module that defines it.
_HOME = {
    "DART": "vtc.methods.dart",
    "EVS": "vtc.methods.evs",
    "GlobalCom2": "vtc.methods.globalcom2",
    "H2O": "vtc.methods.h2o",
    "AdaKV": "vtc.methods.adakv",
    "D2O": "vtc.methods.d2o",
    "EMS": "vtc.methods.ems",
    "KeyDiff": "vtc.methods.keydiff",
    "KNorm": "vtc.methods.knorm",
    "LookM": "vtc.methods.lookm",
    "PyramidKV": "vtc.methods.pyramidkv",
    "SnapKV": "vtc.methods.snapkv",
    "VLCache": "vtc.methods.vl_cache",
    "VFlowOpt": "vtc.methods.vflowopt",
    "VTCCLS": "vtc.methods.vtc_cls",
    "Adapter": "vtc.models.family",
    "BlockTokens": "vtc.methods.base.encoder",
    "CacheBytes": "vtc.kv_bytes",
    "CacheMethod": "vtc.methods.base.cache",
    "Calibrated": "vtc.calibration.calibrate",
    "CalibratedMethod": "vtc.methods.base.calibrated",
    "Checked": "vtc.proof.results",
    "Clip": "vtc.media.video",
    "ClipLimits": "vtc.media.limits",
    "DivPrune": "vtc.methods.divprune",
    "Downsample": "vtc.methods.downsample",
    "DroppingMethod": "vtc.methods.base.encoder",
    "DyCoke": "vtc.methods.dycoke",
    "Encoded": "vtc.engine.encoded",
    "EncoderMethod": "vtc.methods.base.encoder",
    "FastV": "vtc.methods.fastv",
    "FastVID": "vtc.methods.fastvid",
    "FlashVID": "vtc.methods.flashvid",
    "FrameDedupe": "vtc.methods.framededupe",
    "FrameFusion": "vtc.methods.framefusion",
    "Held": "vtc.held",
    "HiRED": "vtc.methods.hired",
    "HoliTom": "vtc.methods.holitom",
    "Joined": "vtc.methods.base.encoder",
    "LateStep": "vtc.methods.late_step",
    "LayerMethod": "vtc.methods.base.layer",
    "MergingMethod": "vtc.methods.base.encoder",
    "Method": "vtc.methods.base.method",
    "MethodInfo": "vtc.methods.base.index",
    "MiniCache": "vtc.methods.minicache",
    "MustDrop": "vtc.methods.mustdrop",
    "OpenClipScorer": "vtc.methods.shared.clip_scorer",
    "Paper": "vtc.methods.base.index",
    "PiToMe": "vtc.methods.tome",
    "PatchMethod": "vtc.methods.base.patches",
    "PixelMethod": "vtc.methods.base.pixels",
    "PixelPrune": "vtc.methods.pixelprune",
    "Pool": "vtc.methods.pool",
    "PruneVid": "vtc.methods.prunevid",
    "PyramidDrop": "vtc.methods.pyramiddrop",
    "QuoTA": "vtc.methods.quota",
    "Random": "vtc.methods.random",
    "RandomRows": "vtc.methods.random_rows",
    "Razor": "vtc.methods.razor",
    "Recoverable": "vtc.methods.recoverable",
    "Report": "vtc.reports",
    "Resized": "vtc.media.smaller",
    "Sample": "vtc.training.samples",
    "Scissorhands": "vtc.methods.scissorhands",
    "Selection": "vtc.selection",
    "SparseVLM": "vtc.methods.sparsevlm",
    "Streaming": "vtc.methods.streaming",
    "ToDRE": "vtc.methods.todre",
    "ToMe": "vtc.methods.tome",
    "Trained": "vtc.training.loop",
    "TrainedMethod": "vtc.methods.base.trained",
    "TransPrune": "vtc.methods.transprune",
    "UniformFrames": "vtc.methods.uniform_frames",
    "VQToken": "vtc.methods.vqtoken",
    "VisionDrop": "vtc.methods.visiondrop",
    "VidCom2": "vtc.methods.vidcom2",
    "VisionZip": "vtc.methods.visionzip",
    "ZeroTPrune": "vtc.methods.zerotprune",
    "VisualTokens": "vtc.signals",
    "cache_bytes": "vtc.kv_bytes",
    "calibrate": "vtc.calibration.calibrate",
    "check": "vtc.proof.run",
    "clip_inputs": "vtc.media.prompts",
    "downsample": "vtc.media.smaller",
    "downsample_all": "vtc.media.smaller",
    "encode": "vtc.api",
    "frame_overlay": "vtc.draw.filmstrip",
    "list_families": "vtc.models",
    "list_methods": "vtc.methods.base.registry",
    "load": "vtc.api",
    "load_clip": "vtc.media.video",
    "load_picture": "vtc.media.pictures",
    "overlay": "vtc.draw.overlays",
    "prepare": "vtc.media.prompts",
    "prompt": "vtc.media.prompts",
    "question_words": "vtc.methods.shared.words",
    "read_samples": "vtc.training.samples",
    "register_adapter": "vtc.models",
    "report": "vtc.api",
    "resolve": "vtc.methods.base.registry",
    "seen": "vtc.media.prompts",
    "select": "vtc.api",
    "square_layout": "vtc.models.family",
    "top_k": "vtc.methods.base.method",
    "train": "vtc.training.loop",
    "unwrap": "vtc.api",
    "wrap": "vtc.api",
    "wrapped": "vtc.api",
    "CDPruner": "vtc.methods.cdpruner",
    "SCOPE": "vtc.methods.scope",
    "VisPruner": "vtc.methods.vispruner",
    "HoloV": "vtc.methods.holov",
    "HiPrune": "vtc.methods.hiprune",
    "GreedyMethod": "vtc.methods.base.greedy",
    "PruMerge": "vtc.methods.prumerge",
    "MMTok": "vtc.methods.mmtok",
    "PruneSID": "vtc.methods.prunesid",
    "VScan": "vtc.methods.vscan",
}


def __getattr__(name: str) -> Any:
    """A public name, or a module of this package; kept, so that it is asked for once."""
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name == "supported":  # what `list_families` was called first
        value = import_module("vtc.models").list_families
    elif not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _check_links(folder: str) -> None:
    """ImportError if files stand where a checkout has links to the packages that live beside this one."""
    for name in ("demos", "eval", "kernels", "models", "serving"):
        if os.path.isfile(os.path.join(folder, name)):
            raise ImportError(
                f"{os.path.join(folder, name)} is a plain file where a symbolic link belongs, which git did not make: "
                "run `git config core.symlinks true` and `git checkout -- vtc` in the checkout (on Windows with "
                "Developer Mode on), or install a wheel of vtc-vlm"
            )


_check_links(os.path.dirname(__file__))
