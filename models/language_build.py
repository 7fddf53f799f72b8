"""Language models by name, or from a folder on disk.

``t5:128-2-4`` (width, layers, heads; an encoder and a decoder of so many layers each), ``llama:``, ``qwen2:``,
``llava:`` (a causal model with a small vision tower before it) and ``roberta:`` (an encoder, with a head that knows the
classes) are built small and untrained. Anything else is the path of a folder with ``config.json`` and weights, or of a
PEFT adapter with ``adapter_config.json``. All are the classes of ``transformers``, so real weights go the same way.

Dropout is 0 in every model, also where its configuration says otherwise (our choice: a step then draws nothing, and a
stopped run goes on bit for bit).
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .kernels.inference_linear import Linear
from .language import Context, LanguageNetwork, Layout, Prompts
from .language_bodies import Causal, EncoderDecoder
from .networks import Network
from .vision import import_torchvision

SIZES = {"t5": "128-2-4", "llama": "128-2-4", "qwen2": "128-2-4", "llava": "128-2-4", "roberta": "128-2-4"}
"""Names, and the sizes that they have where none are given."""
WIDE = 0.55
"""First weights of llava deviate by WIDE / sqrt(width): the usual 0.02 of wide models, where attention of narrow ones
would begin so even that they take thousands of updates to look at an image at all."""
MISSING = "language models need transformers, peft and tokenizers: pip install driftway[lm]"


def is_language_model(name: str) -> bool:
    """Whether the name is one of a language model, or a path."""
    return name.partition(":")[0] in SIZES or "/" in name or Path(name).is_dir()


def build_language(name: str, layout: Layout, classes: int, *, seed: int = 0) -> LanguageNetwork | Network:
    """The model of this name for rows of this layout; an encoder alone becomes a ``Network`` with a head.

    The weights are drawn from ``seed`` alone; torch's global generator is left as it was. Raises ``ValueError`` with
    one line for a person.
    """
    _import_transformers()
    kind, _, sizes = name.partition(":")
    with torch.random.fork_rng(devices=[]), _quietly():
        torch.manual_seed(seed)
        if kind in SIZES:
            return language_network(_built(kind, sizes or SIZES[kind], layout), layout, classes)
        body = _loaded(Path(name))
        _check_tokenizer(Path(name), layout)
        return language_network(body, layout, classes)


def language_network(body: Any, layout: Layout, classes: int) -> LanguageNetwork | Network:
    """A model of ``transformers`` (or of PEFT) as a network for rows of this layout; its vision tower stands still.

    Raises ``ValueError`` with one line for a person where the model does not suit the rows.
    """
    _check(body, layout)
    for name, module in body.named_modules():
        if name.rpartition(".")[2] == "vision_tower":
            module.requires_grad_(False)
    if body.config.is_encoder_decoder:
        return LanguageNetwork(body, EncoderDecoder, layout)
    if body.get_output_embeddings() is not None:
        _check_head(body)
        return LanguageNetwork(body, Causal, layout)
    return Network(Encoder(body, layout), Linear(body.config.hidden_size, classes))


class Encoder(nn.Module):
    """An encoder as a body: rows to the state of their first token, float[B, width]."""

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.model = model
        self.layout = layout
        self.context = Context()

    def forward(self, x: Tensor) -> Tensor:
        prompts = Prompts.of(x, self.layout)
        real = prompts.real(prompts.ids.shape[1])
        self.context.set(real)
        mask = None if bool(real.all()) else real
        out: Tensor = self.model(input_ids=prompts.ids, attention_mask=mask).last_hidden_state[:, 0]
        return out


def _import_transformers() -> None:
    """``transformers`` looks at images with torchvision where that is there, which may not fit torch's build."""
    with suppress(ImportError):
        import_torchvision()
    try:
        import transformers  # noqa: F401 - is it there?
    except ImportError:
        raise ValueError(MISSING) from None


def _built(kind: str, sizes: str, layout: Layout) -> Any:
    import transformers

    width, layers, heads = _sizes(kind, sizes)
    if kind == "t5":
        return transformers.T5ForConditionalGeneration(_t5(width, layers, heads, layout))
    if kind == "roberta":
        config = transformers.RobertaConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            max_position_embeddings=layout.length + layout.pad + 1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **_tokens(layout),
        )
        return transformers.RobertaModel(config, add_pooling_layer=False)
    shared: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2) if kind == "qwen2" else heads,
        "intermediate_size": 32 * -(-8 * width // 96),
        "max_position_embeddings": 2 * (layout.length + layout.answers.shape[1]) + 1024,
        "tie_word_embeddings": True,
        **_tokens(layout),
    }
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shared))
    if kind == "qwen2":
        return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shared))
    return transformers.LlavaForConditionalGeneration(_llava(shared, layout))


def _t5(width: int, layers: int, heads: int, layout: Layout) -> Any:
    from transformers import T5Config

    settings: dict[str, Any] = _tokens(layout) | {"decoder_start_token_id": layout.pad}
    return T5Config(
        d_model=width,
        d_kv=width // heads,
        d_ff=4 * width,
        num_layers=layers,
        num_heads=heads,
        dropout_rate=0.0,
        **settings,
    )


def _llava(text: dict[str, Any], layout: Layout) -> Any:
    """One id more than the stream has stands for a patch of the image."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    if layout.image is None:
        raise ValueError("model llava looks at images, and the rows of this stream have none: take llama")
    channels, height, across = layout.image
    if height != across or height % layout.patch:
        raise ValueError(f"model llava needs square images of whole patches, not {height} x {across} at {layout.patch}")
    width, heads = text["hidden_size"], text["num_attention_heads"]
    spread = {"initializer_range": WIDE * width**-0.5}
    vision = CLIPVisionConfig(
        **spread,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=text["num_hidden_layers"],
        num_attention_heads=heads,
        num_channels=channels,
        image_size=height,
        patch_size=layout.patch,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**text | spread | {"vocab_size": layout.vocabulary + 1}),
        image_token_index=layout.vocabulary,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )


def _tokens(layout: Layout) -> dict[str, Any]:
    return {"vocab_size": layout.vocabulary, "pad_token_id": layout.pad, "eos_token_id": layout.eos}


def _loaded(folder: Path) -> Any:
    """The model in a folder, or an adapter on its base; nothing is ever downloaded. Raises ``ValueError``, one line."""
    adapter = folder / "adapter_config.json"
    if not adapter.is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            f"model {folder}: no folder with config.json there; a model of the hub is first brought onto this machine "
            f"(hf download {folder} --local-dir FOLDER), and then named by its folder"
        )
    base = _loaded(_base_of(folder, adapter)) if adapter.is_file() else None
    try:
        return _still(_whole(folder) if base is None else _adapted(folder, base))
    except Exception as fault:  # transformers, peft and safetensors raise whatever they like
        why = next(iter(str(fault).splitlines()), "") or type(fault).__name__
        raise ValueError(f"model {folder} cannot be loaded: {why}") from None


def _whole(folder: Path) -> Any:
    """Every weight of the model comes from the folder; a pooler is of no use here, and many folders have none."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    given: dict[str, Any] = {"local_files_only": True, "dtype": torch.float32, "trust_remote_code": False}
    model, found = _class_of(config).from_pretrained(
        folder, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **given
    )
    lacking = [n for n in found["missing_keys"] if not n.startswith("pooler.")]
    lacking += [name for name, *_ in found["mismatched_keys"]]
    if lacking:
        raise ValueError(f"its weights are not those of its config.json: {_counted(lacking)}")
    seen_as = folder / "preprocessor_config.json"
    if seen_as.is_file():
        settings = json.loads(seen_as.read_text(encoding="utf-8"))
        model.config.update({key: settings[key] for key in ("image_mean", "image_std") if key in settings})
    return model


def _base_of(folder: Path, adapter: Path) -> Path:
    """The folder of an adapter's base model, as it stands in the file or seen from the adapter's folder."""
    try:
        named = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        places = [path for path in (Path(named), folder / named) if path.is_dir()]
        base = next(path for path in places if not path.samefile(folder))
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"model {adapter}: no JSON with the folder of a model as base_model_name_or_path") from None
    except StopIteration:
        raise ValueError(
            f"model {folder}: its base {named} is no other folder on this machine: "
            f"write into {adapter.name} where it is (base_model_name_or_path)"
        ) from None
    return base


def _adapted(folder: Path, base: Any) -> Any:
    """PEFT's adapter of this folder on its base, whose layers must be those that it was made for."""
    try:
        from peft import PeftModel, get_peft_model_state_dict, load_peft_weights
    except ImportError:
        raise ValueError(MISSING) from None
    if not any((folder / f"adapter_model.{kind}").is_file() for kind in ("safetensors", "bin")):
        raise ValueError("no adapter_model.safetensors there")
    model = PeftModel.from_pretrained(base, str(folder), is_trainable=True, ignore_mismatched_sizes=True)
    saved = load_peft_weights(str(folder), device="cpu")
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    known = wanted | model.state_dict()
    other = [n for n in wanted | saved if n not in saved or n not in known or saved[n].shape != known[n].shape]
    if other:
        raise ValueError(f"it was made for another base: {_counted(other)}")
    return model


def _counted(names: Iterable[str]) -> str:
    """Weights that do not fit, in few words."""
    first, *more = sorted(names)
    return f"{first} is not there or has another shape" + (f", nor do {len(more)} more fit" if more else "")


def _class_of(config: Any) -> Any:
    """The class that the configuration names, or the automatic one for its kind; an encoder comes without its head."""
    import transformers

    name = (config.architectures or [""])[0]
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    if hasattr(config, "vision_config"):
        return getattr(transformers, name, transformers.AutoModelForImageTextToText)
    return (
        transformers.AutoModelForCausalLM if name.endswith(("ForCausalLM", "LMHeadModel")) else transformers.AutoModel
    )


def _still(model: Any) -> Any:
    """The same without dropout."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "dropout_rate"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def _check(body: Any, layout: Layout) -> None:
    name = type(body).__name__
    rows = body.get_input_embeddings().num_embeddings
    if rows < layout.vocabulary:
        raise ValueError(
            f"model {name} knows {rows} tokens and the stream's tokenizer has {layout.vocabulary}: give the stream the "
            "model's own tokenizer (tokenizer=FOLDER)"
        )
    if getattr(getattr(body, "active_peft_config", None), "is_prompt_learning", False):
        raise ValueError(f"model {name} learns tokens before the prompt, which is not done here: take LoRA or the like")
    most, needed = _places(body, layout)
    if most < needed:
        raise ValueError(f"model {name} reads at most {most} tokens, and rows of this stream may need {needed}: length")
    vision = getattr(body.config, "vision_config", None)
    if layout.image is not None and vision is None:
        raise ValueError(f"model {name} does not look at images, and the rows of this stream have one: take llava")
    if vision is not None and (layout.image or (0, 0, 0))[1:] != (vision.image_size, vision.image_size):
        wanted = f"{vision.image_size} x {vision.image_size}"
        raise ValueError(
            f"model {name} looks at images of {wanted} pixels, and those of this stream are others, or none"
        )
    if vision is not None and vision.patch_size != layout.patch:
        raise ValueError(f"model {name} cuts images at {vision.patch_size} pixels, this stream at {layout.patch}")


def _check_head(body: Any) -> None:
    """Answers are read off the last layer: models that scale, cap or transform before it would be read wrongly."""
    model = body.get_base_model() if hasattr(body, "get_base_model") else body
    ids = torch.arange(1, 5)[None] % model.get_input_embeddings().num_embeddings
    training = model.training
    with torch.no_grad():
        said = model.eval()(input_ids=ids).logits
        read = model.get_output_embeddings()(model.base_model(input_ids=ids).last_hidden_state)
    model.train(training)
    if not torch.allclose(said, read, rtol=1e-3, atol=1e-4 * float(said.abs().max())):
        raise ValueError(
            f"model {type(model).__name__} does more to its outputs than its last layer (scales, caps or transforms "
            "them), which is not done here"
        )


def _check_tokenizer(folder: Path, layout: Layout) -> None:
    """A model that is given ids of another tokenizer than its own runs, and reads nonsense."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    try:
        own = Tokenizer.from_file(str(file)).get_vocab()
    except Exception as fault:  # the library raises bare Exception
        raise ValueError(f"model {folder}: its tokenizer.json cannot be read: {fault}") from None
    if own != Tokenizer.from_str(layout.tokenizer).get_vocab():
        raise ValueError(
            f"model {folder} has a tokenizer of its own, and the stream has another: tokenizer={folder} (or, where it "
            "should have another, take tokenizer.json out of the folder)"
        )


def _places(body: Any, layout: Layout) -> tuple[float, int]:
    """(places that the model has, those that a row and its answer take); inf where it knows no limit."""
    config = body.config.get_text_config(decoder=True)
    first = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    alone = body.config.is_encoder_decoder or body.get_output_embeddings() is None
    patches = 0 if layout.image is None else (layout.image[1] // layout.patch) * (layout.image[2] // layout.patch)
    needed = layout.length if alone else patches + layout.length + layout.answers.shape[1] - 1
    return getattr(config, "max_position_embeddings", None) or math.inf, first + needed


def _sizes(kind: str, sizes: str) -> tuple[int, int, int]:
    numbers = [int(n) if n.isdecimal() else 0 for n in sizes.split("-")]
    if len(numbers) != 3 or min(numbers) < 1 or numbers[0] % (2 * numbers[2]):
        raise ValueError(
            f"model {kind}:{sizes}: sizes are width-layers-heads, the width an even multiple of the heads, such as "
            f"{kind}:{SIZES[kind]}"
        )
    return numbers[0], numbers[1], numbers[2]


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the progress bars and remarks of ``transformers``, what it says to PEFT about its own future, and PEFT's
    doubts about weights that are looked at here."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for kind in (FutureWarning, UserWarning):
                warnings.simplefilter("ignore", kind)
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
