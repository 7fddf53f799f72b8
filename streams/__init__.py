"""Floor 1: what arrives. Events, sources, and drift as values one composes. NumPy only, never torch."""

from .catalog import STREAMS, describe, open_stream, stream_params
from .cifar_c import CIFAR_C, weathered
from .compose import drop_labels, rebatch, shuffle_within, split_classes, take
from .corruption import KINDS, corrupt, mark
from .datasets import DATASETS, Dataset, cache_folder, data_path, folders, locate
from .delay import delay_labels
from .download import fetch
from .drift import concat, incremental
from .events import NO_LABEL, Array, Batch, Boundary, Event, Forget, Labels, Rejected, concatenate
from .experiences import from_experiences
from .few_shots import FewShotFeatures, few_shot_features
from .files import FileParams, open_file
from .requests import ask_to_forget, keep_asking
from .sources import BLOCK, BlockStream, from_arrays
from .spec import (
    AMBIGUOUS,
    MAX_CLASSES,
    OWN,
    PADDING,
    SHARED,
    Column,
    Experience,
    Impressions,
    InputError,
    Source,
    Stream,
    StreamSpec,
    Text,
    Worth,
)

stream = open_stream

__all__ = [
    "AMBIGUOUS",
    "BLOCK",
    "CIFAR_C",
    "DATASETS",
    "KINDS",
    "MAX_CLASSES",
    "NO_LABEL",
    "OWN",
    "PADDING",
    "SHARED",
    "STREAMS",
    "Array",
    "Batch",
    "BlockStream",
    "Boundary",
    "Column",
    "Dataset",
    "Event",
    "Experience",
    "FewShotFeatures",
    "FileParams",
    "Forget",
    "Impressions",
    "InputError",
    "Labels",
    "Rejected",
    "Source",
    "Stream",
    "StreamSpec",
    "Text",
    "Worth",
    "ask_to_forget",
    "cache_folder",
    "concat",
    "concatenate",
    "corrupt",
    "data_path",
    "delay_labels",
    "describe",
    "drop_labels",
    "fetch",
    "few_shot_features",
    "folders",
    "from_arrays",
    "from_experiences",
    "incremental",
    "keep_asking",
    "locate",
    "mark",
    "open_file",
    "open_stream",
    "rebatch",
    "shuffle_within",
    "split_classes",
    "stream",
    "stream_params",
    "take",
    "weathered",
]
