"""Language models as networks: what padding, order of rows, caches and folders must not change."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from driftway.models.language import LanguageNetwork, Prompts, by_length
from driftway.models.language_answers import Matcher, answer_lengths, normalised
from driftway.models.language_build import build_language, language_network
from driftway.models.networks import Network
from driftway.streams.spec import Text
from torch.nn import functional as F

WORDS = ["<pad>", "</s>", "yes", "no", "very", "good", ".", *(f"w{i}" for i in range(33))]
PAD, EOS, LENGTH = 0, 1, 9
ANSWERS = np.array([[2, 1, 0], [3, 1, 0], [4, 5, 1]], np.int32)  # yes; no; very good
FAMILIES = ["t5:16-1-2", "llama:16-1-2", "qwen2:16-1-2", "llava:16-1-2"]


def text(length: int = LENGTH, *, image: bool = False, vocabulary: int = len(WORDS)) -> Text:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<pad>")).to_str()
    picture: dict[str, Any] = {"image": (3, 8, 8), "patch": 4} if image else {}
    return Text(length, vocabulary, PAD, EOS, ANSWERS, tokenizer, **picture)


def net_of(name: str, length: int = LENGTH, seed: int = 0) -> LanguageNetwork:
    net = build_language(name, text(length, image=name.startswith("llava")), 4, seed=seed)
    assert isinstance(net, LanguageNetwork)
    return net.eval()


def rows(name: str, n: int = 5, length: int = LENGTH, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of 2 tokens and more, the same ones whatever the length of a row."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, length), np.float32)
    for i, size in enumerate(rng.permutation(n) % (LENGTH - 1) + 2):
        x[i, :size] = rng.integers(2, len(WORDS), size)
    if name.startswith("llava"):
        x = np.c_[x, rng.integers(0, 256, (n, 3 * 8 * 8)).astype(np.float32)]
    return torch.from_numpy(x), torch.from_numpy(rng.integers(0, 3, n))


@pytest.mark.parametrize("name", FAMILIES)
class TestFamily:
    def test_padding_changes_nothing(self, name: str) -> None:
        z = [net_of(name, length)(*rows(name, length=length)) for length in (LENGTH, LENGTH + 7)]
        assert torch.equal(*z)
        net, (x, y) = net_of(name), rows(name)
        apart = torch.cat([net(x[i : i + 1], y[i : i + 1], 3) for i in range(len(x))])
        whole = net(x, y, 3)
        real = torch.arange(3) < net.sizes[y, None]
        torch.testing.assert_close(whole[real], apart[real], atol=1e-5, rtol=0)

    def test_loss_is_the_mean_over_the_answers_own_tokens(self, name: str) -> None:
        net, (x, y) = net_of(name), rows(name)
        z = net(x, y).double().log_softmax(2)
        terms = [-z[i, t, ANSWERS[c, t]] for i, c in enumerate(y.tolist()) for t in range(net.sizes[c])]
        torch.testing.assert_close(net.loss(net(x, y), y).double(), torch.stack(terms).mean(), atol=1e-6, rtol=0)

    def test_writing_is_the_argmax_without_a_cache(self, name: str) -> None:
        net, (x, _) = net_of(name, seed=3), rows(name, 7)
        written = net.way.write(Prompts.of(x, net.layout), 3)
        assert written.shape[1] == 3
        for row, said in zip(x, written):
            ended = False
            for t, token in enumerate(said.tolist()):
                so_far = torch.cat([said[:t], torch.tensor([PAD])])[None]
                one = Prompts.of(row[None], net.layout)
                z = net.way.logits(one, so_far, torch.ones(1, t + 1, dtype=torch.bool))[0, t]
                assert token == (PAD if ended else int(z.argmax()))
                ended |= token == EOS

    def test_transformers_writes_the_same_and_has_the_same_loss(self, name: str) -> None:
        """Each row alone, without padding, as a script with ``generate`` and ``labels`` would do it; patches first."""
        net, (x, y) = net_of(name, seed=3), rows(name, 4)
        body: Any = net.body
        prompts = Prompts.of(x, net.layout)
        written = net.way.write(prompts, 6)
        for i, size in enumerate(prompts.lengths.tolist()):
            ids, given = prompts.ids[i : i + 1, :size], {}
            if prompts.pixels is not None:
                ids = torch.cat([torch.full((1, 4), len(WORDS)), ids], 1)
                given["pixel_values"] = (prompts.pixels[i : i + 1] / 255 - 0.5) / 0.5
            told = {"attention_mask": torch.ones_like(ids), "eos_token_id": EOS, "pad_token_id": PAD, **given}
            out = body.generate(input_ids=ids, do_sample=False, max_new_tokens=6, **told)
            new = out[0, 1:] if name.startswith("t5") else out[0, ids.shape[1] :]
            assert torch.equal(written[i, : len(new)], new)
            assert not written[i, len(new) :].any()
            labels = net.targets[y[i : i + 1], : int(net.sizes[y[i]])]
            if not name.startswith("t5"):
                ids = torch.cat([ids, labels], 1)
                labels = torch.cat([torch.full((1, ids.shape[1] - labels.shape[1]), -100), labels], 1)
            mine = net.loss(net(x[i : i + 1], y[i : i + 1]), y[i : i + 1])
            torch.testing.assert_close(body(input_ids=ids, labels=labels, **given).loss, mine, atol=1e-5, rtol=0)

    def test_answers_do_not_depend_on_the_rows_beside(self, name: str) -> None:
        net, (x, _) = net_of(name), rows(name, 7)
        net.eval()
        together = net.way.write(Prompts.of(x, net.layout), 3)
        for i in range(len(x)):
            alone = net.way.write(Prompts.of(x[i : i + 1], net.layout), 3)[0]
            assert torch.equal(together[i, : len(alone)], alone)

    def test_a_taught_answer_is_written(self, name: str) -> None:
        net, (x, y) = net_of(name), rows(name)
        optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 0.02)
        for _ in range(60):
            optimiser.zero_grad()
            net.loss(net(x, y), y).backward()
            optimiser.step()
        assert torch.equal(net.answer(x), y)

    def test_weights_come_from_the_seed_alone(self, name: str) -> None:
        torch.manual_seed(9)
        before = torch.get_rng_state()
        a, b, c = net_of(name, seed=4), net_of(name, seed=4), net_of(name, seed=5)
        assert torch.equal(torch.get_rng_state(), before)
        key = next(n for n, w in a.named_parameters() if n.endswith(("q.weight", "q_proj.weight")))
        assert all(key.startswith("body.") for key in a.state_dict())
        assert torch.equal(a.state_dict()[key], b.state_dict()[key])
        assert not torch.equal(a.state_dict()[key], c.state_dict()[key])

    def test_checkpointed_blocks_give_the_same_gradient(self, name: str) -> None:
        found = []
        for checkpointed in (False, True):
            net, (x, y) = net_of(name).train(), rows(name)
            if checkpointed:
                net.checkpoint()
            weights = [w for w in net.parameters() if w.requires_grad]
            found.append(torch.autograd.grad(net.loss(net(x, y), y), weights, allow_unused=True))
        for a, b in zip(*found):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)

    def test_reading_loss_teaches_the_prompts(self, name: str) -> None:
        net, (x, _) = net_of(name), rows(name)
        first = net.reading_loss(x, 0.4).item()
        optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 0.02)
        for _ in range(60):
            optimiser.zero_grad()
            net.reading_loss(x, 0.4).backward()
            optimiser.step()
        assert net.reading_loss(x, 0.4).item() < 0.7 * first

    def test_a_saved_folder_gives_the_same_answers(self, name: str, tmp_path: Path) -> None:
        net, (x, y) = net_of(name), rows(name)
        body: Any = net.body
        body.save_pretrained(tmp_path)
        again = build_language(str(tmp_path), net.layout, 4, seed=8)
        torch.testing.assert_close(again.eval()(x, y), net(x, y), atol=1e-6, rtol=0)


def test_pixels_are_scaled_as_the_folder_says(tmp_path: Path) -> None:
    net, (x, y) = net_of("llava:16-1-2"), rows("llava")
    body: Any = net.body
    body.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [0.5, 0.5, 0.5]}')
    again = build_language(str(tmp_path), net.layout, 4).eval()
    darker = x.clone()
    darker[:, LENGTH:] -= 127.5
    torch.testing.assert_close(again(darker, y), net(x, y), atol=1e-5, rtol=0)
    assert not torch.allclose(again(x, y), net(x, y), atol=1e-4)


def test_without_the_extra_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install driftway\[lm\]"):
        build_language("t5", text(), 4)


def test_layers_learn_which_tokens_are_real() -> None:
    """Also in the second run of a checkpointed block, when another pass has been in between."""
    net, (x, y) = net_of("llama:16-1-2").train(), rows("llama", 4)
    net.checkpoint()
    seen: list[tuple[int, bool]] = []

    def look(module: Any, given: Any, out: torch.Tensor) -> None:  # noqa: ARG001 - the signature of a hook
        real = net.context.valid(*out.shape[:2])
        assert real is not None
        seen.append((int(real.sum()), net.context.again))

    net.get_submodule("body.model.layers.0.mlp.up_proj").register_forward_hook(look)
    losses = [net.loss(net(x[some], y[some], 3), y[some]) for some in (slice(0, 2), slice(2, 4))]
    weights = [w for w in net.parameters() if w.requires_grad]
    torch.autograd.grad(losses[0] + losses[1], weights)
    prompts = (x[:, :LENGTH] != PAD).sum(1) + net.sizes[y] - 1
    first, second = int(prompts[:2].sum()), int(prompts[2:].sum())
    assert seen[:2] == [(first, False), (second, False)]
    assert sorted(seen[2:]) == sorted([(first, True), (second, True)])


def test_encoder_and_decoder_tokens_are_told_apart() -> None:
    net, (x, y) = net_of("t5:16-1-2"), rows("t5", 3)
    x = torch.where(torch.arange(LENGTH) < 3, x.clamp(min=7), 0.0)  # prompts as long as the longest answer
    net(x, torch.full_like(y, 2))
    assert net.context.valid(3, 3) is not None
    assert net.context.valid(3, 4) is not None
    assert int(net.context.valid(3, 4).sum()) == 9


def test_an_encoder_becomes_a_body_with_a_head() -> None:
    net = build_language("roberta:16-1-2", text(), 4).eval()
    assert isinstance(net, Network)
    x, y = rows("roberta")
    assert net(x).shape == (5, 4)
    longer = build_language("roberta:16-1-2", text(LENGTH + 5), 4).eval()
    same = {n: w for n, w in net.state_dict().items() if "position" not in n}
    longer.load_state_dict(same, strict=False)
    longer.get_parameter("body.model.embeddings.position_embeddings.weight").data[: LENGTH + 1] = net.get_parameter(
        "body.model.embeddings.position_embeddings.weight"
    ).data
    torch.testing.assert_close(longer(F.pad(x, (0, 5))), net(x), atol=1e-6, rtol=0)
    F.cross_entropy(net(x), y).backward()


def adapter_on(folder: Path, base: str, **of: Any) -> Path:
    """An adapter as PEFT saves one, made for ``base``, whose folder then is beside it."""
    from peft import LoraConfig, get_peft_model

    body: Any = net_of(base).body
    body.save_pretrained(folder / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        peft: Any = get_peft_model(body, LoraConfig(r=2, **({"target_modules": ["q_proj", "v_proj"]} | of)))
        peft.save_pretrained(folder / "adapter", save_embedding_layers=False)
    point(folder / "adapter", base_model_name_or_path="../base")
    return folder / "adapter"


def point(folder: Path, **settings: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_an_adapter_folder_trains_its_adapter_alone(tmp_path: Path) -> None:
    net, (x, y) = net_of("llama:16-1-2"), rows("llama")
    adapter_on(tmp_path, "llama:16-1-2", lora_dropout=0.3)
    loaded = build_language(str(tmp_path / "adapter"), text(), 4)
    trained = [n for n, w in loaded.named_parameters() if w.requires_grad]
    assert len(trained) == 4
    assert all("lora_" in n for n in trained)
    torch.testing.assert_close(loaded.train()(x, y), net(x, y), atol=1e-6, rtol=0)  # B is 0, and no dropout is left


def test_folders_whose_weights_are_not_their_model_are_one_line(tmp_path: Path) -> None:
    """Never a model with some weights drawn at random."""
    for name, other in (("llama:16-1-2", "t5:16-1-2"), ("llama:16-2-2", "llama:16-1-2"), ("t5:32-1-2", "t5:16-1-2")):
        for place, model in (("model", name), ("other", other)):
            body: Any = net_of(model).body
            body.save_pretrained(tmp_path / place)
        (tmp_path / "other" / "model.safetensors").replace(tmp_path / "model" / "model.safetensors")
        with pytest.raises(ValueError, match=r"its weights are not those of its config\.json: .* is not there or has"):
            build_language(str(tmp_path / "model"), text(), 4)
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model cannot be loaded: [^\n]*$"):
        build_language(str(tmp_path / "model"), text(), 4)


def test_a_model_is_read_with_its_own_tokenizer(tmp_path: Path) -> None:
    """Ids of another one with no more tokens would be taken without a word."""
    from tokenizers import Tokenizer

    net, (x, y) = net_of("llama:16-1-2"), rows("llama")
    body: Any = net.body
    body.save_pretrained(tmp_path)
    own = Tokenizer.from_str(text().tokenizer)
    own.save(str(tmp_path / "tokenizer.json"))
    assert torch.equal(build_language(str(tmp_path), text(), 4).eval()(x, y), net(x, y))
    (tmp_path / "tokenizer.json").write_text(own.to_str().replace('"w7"', '"other"'))
    with pytest.raises(ValueError, match=r"has a tokenizer of its own, and the stream has another: tokenizer=.*"):
        build_language(str(tmp_path), text(), 4)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"its tokenizer\.json cannot be read"):
        build_language(str(tmp_path), text(), 4)


def test_an_encoder_with_another_head_or_no_pooler_is_whole(tmp_path: Path) -> None:
    from transformers import RobertaForMaskedLM

    made: Any = build_language("roberta:16-1-2", text(), 4)
    RobertaForMaskedLM(made.body.model.config).save_pretrained(tmp_path)
    assert isinstance(build_language(str(tmp_path), text(), 4), Network)


def test_adapters_of_another_base_are_one_line(tmp_path: Path) -> None:
    adapter = adapter_on(tmp_path, "llama:16-1-2")
    for base in ("llama:16-2-2", "llama:32-1-2", "t5:16-1-2"):
        body: Any = net_of(base).body
        body.save_pretrained(tmp_path / base)
        point(adapter, base_model_name_or_path=f"../{base}")
        wanted = "Target modules" if base.startswith("t5") else "it was made for another base: "
        with pytest.raises(ValueError, match=f"adapter cannot be loaded: {wanted}[^\n]*$"):
            build_language(str(adapter), text(), 4)
    for nowhere in ("someone/some-model", "../adapter"):
        point(adapter, base_model_name_or_path=nowhere)
        with pytest.raises(ValueError, match=f"its base {nowhere} is no other folder on this machine"):
            build_language(str(adapter), text(), 4)
    point(adapter, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="no JSON with the folder of a model"):
        build_language(str(adapter), text(), 4)
    point(adapter, base_model_name_or_path="../base")
    build_language(str(adapter), text(), 4)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no adapter_model\.safetensors there"):
        build_language(str(adapter), text(), 4)


def test_models_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    small = net_of("t5:16-1-2")
    body: Any = small.body
    with pytest.raises(ValueError, match=r"knows 40 tokens and the stream's tokenizer has 41: give the stream"):
        language_network(body, text(vocabulary=41), 4)
    with pytest.raises(ValueError, match="take llava"):
        build_language("llama:16-1-2", text(image=True), 4)
    with pytest.raises(ValueError, match="take llama"):
        build_language("llava:16-1-2", text(), 4)
    with pytest.raises(ValueError, match="width-layers-heads"):
        build_language("t5:16-1", text(), 4)
    with pytest.raises(ValueError, match="hf download"):
        build_language("someone/some-model", text(), 4)
    looks: Any = net_of("llava:16-1-2").body
    with pytest.raises(ValueError, match="looks at images of 8 x 8 pixels"):
        language_network(looks, text(), 4)
    from transformers import BertConfig, BertLMHeadModel, Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

    short = GPT2LMHeadModel(GPT2Config(vocab_size=len(WORDS), n_positions=LENGTH + 1, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="reads at most 10 tokens, and rows of this stream may need 11"):
        language_network(short, text(), 4)
    sizes = {"vocab_size": len(WORDS), "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    capped = Gemma2ForCausalLM(Gemma2Config(**sizes, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.01))
    for model in (capped, BertLMHeadModel(BertConfig(**sizes, intermediate_size=8, is_decoder=True))):
        with pytest.raises(ValueError, match=f"model {type(model).__name__} does more to its outputs than its last"):
            language_network(model, text(), 4)
    from peft import PromptTuningConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        before = get_peft_model(
            net_of("llama:16-1-2").body, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        )
    with pytest.raises(ValueError, match="learns tokens before the prompt, which is not done here"):
        language_network(before, text(), 4)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be loaded"):
        build_language(str(tmp_path), text(), 4)


def test_written_tokens_are_matched_as_text() -> None:
    matcher = Matcher(ANSWERS, text().tokenizer, PAD, EOS)
    written = np.array(
        [[2, 1, 9], [3, 1, 0], [4, 5, 1], [4, 5, 6], [6, 2, 1], [4, 1, 5], [9, 9, 9], [1, 2, 3], [2, 0, 0]]
    )
    assert matcher.classes(written).tolist() == [0, 1, 2, 2, 0, 3, 3, 3, 0]
    assert matcher.classes(written[:2, :2]).tolist() == [0, 1]
    assert normalised(" Very GOOD!\n") == "verygood"
    assert answer_lengths(ANSWERS, EOS).tolist() == [2, 2, 3]


def test_pieces_hold_every_row_once_shortest_first() -> None:
    x, _ = rows("t5", 9)
    pieces = by_length(x, text(), 12)
    assert sorted(torch.cat(list(pieces)).tolist()) == list(range(9))
    lengths = Prompts.of(x, text()).lengths
    assert lengths[torch.cat(list(pieces))].diff().min() >= 0
    assert all(len(p) == 1 or len(p) * int(lengths[p].max()) <= 12 for p in pieces)
    assert by_length(x[:0], text(), 12) == []
