"""vtc: visual-token compression. Make a vision-language model cheaper to run with one call."""

from vtc.api import encode, load, report, select, unwrap, wrap, wrapped
from vtc.draw.filmstrip import frame_overlay
from vtc.draw.overlays import overlay
from vtc.media.pictures import load_picture
from vtc.media.prompts import clip_inputs, prepare, prompt, seen
from vtc.media.video import Clip, load_clip
from vtc.methods.base.cache import CacheMethod
from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Method, Paper, top_k
from vtc.methods.base.registry import MethodInfo, methods, resolve
from vtc.methods.base.trained import TrainedMethod
from vtc.methods.dart import DART
from vtc.methods.divprune import DivPrune
from vtc.methods.dycoke import DyCoke
from vtc.methods.evs import EVS
from vtc.methods.fastv import FastV
from vtc.methods.framefusion import FrameFusion
from vtc.methods.h2o import H2O
from vtc.methods.holitom import HoliTom
from vtc.methods.mustdrop import MustDrop
from vtc.methods.pool import Pool
from vtc.methods.prunevid import PruneVid
from vtc.methods.pyramiddrop import PyramidDrop
from vtc.methods.quota import QuoTA
from vtc.methods.random import Random
from vtc.methods.scissorhands import Scissorhands
from vtc.methods.shared.clip_scorer import OpenClipScorer
from vtc.methods.sparsevlm import SparseVLM
from vtc.methods.streaming import Streaming
from vtc.methods.todre import ToDRE
from vtc.methods.tome import PiToMe, ToMe
from vtc.methods.transprune import TransPrune
from vtc.methods.uniform_frames import UniformFrames
from vtc.methods.visiondrop import VisionDrop
from vtc.methods.visionzip import VisionZip
from vtc.methods.vqtoken import VQToken
from vtc.methods.vtc_cls import VTCCLS
from vtc.models import register_adapter, supported
from vtc.reports import Report
from vtc.selection import Selection
from vtc.signals import VisualTokens
from vtc.training.loop import Trained, train
from vtc.training.samples import Sample, read_samples

__all__ = [
    "DART",
    "EVS",
    "H2O",
    "VTCCLS",
    "CacheMethod",
    "Clip",
    "DivPrune",
    "DyCoke",
    "FastV",
    "FrameFusion",
    "HoliTom",
    "LayerMethod",
    "Method",
    "MethodInfo",
    "MustDrop",
    "OpenClipScorer",
    "Paper",
    "PiToMe",
    "Pool",
    "PruneVid",
    "PyramidDrop",
    "QuoTA",
    "Random",
    "Report",
    "Sample",
    "Scissorhands",
    "Selection",
    "SparseVLM",
    "Streaming",
    "ToDRE",
    "ToMe",
    "Trained",
    "TrainedMethod",
    "TransPrune",
    "UniformFrames",
    "VQToken",
    "VisionDrop",
    "VisionZip",
    "VisualTokens",
    "clip_inputs",
    "encode",
    "frame_overlay",
    "load",
    "load_clip",
    "load_picture",
    "methods",
    "overlay",
    "prepare",
    "prompt",
    "read_samples",
    "register_adapter",
    "report",
    "resolve",
    "seen",
    "select",
    "supported",
    "top_k",
    "train",
    "unwrap",
    "wrap",
    "wrapped",
]
