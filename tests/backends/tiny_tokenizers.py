"""Small tokenizers of the kinds we serve, built in memory."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

SPECIALS = ["<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_TEXT = [
    "the quick brown fox jumps over the lazy dog",
    "the cat sat on the mat and the dog sat on the log",
    "numbers 1 2 3 4 and words of all kinds, héllo wörld, 你好世界",
]


def byte_level() -> tokenizers.Tokenizer:
    """GPT-2's kind: byte-level BPE over 256 bytes and some merges."""
    rust = tokenizers.Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator(_TEXT * 4, trainer)
    return rust


def sentencepiece() -> tokenizers.Tokenizer:
    """Llama 2's kind: word-start marks and byte fallback."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab.update({f"<0x{byte:02X}>": 3 + byte for byte in range(256)})
    merges: list[tuple[str, str]] = []
    for piece in "▁abcdehlortw":
        vocab[piece] = len(vocab)
    for left, right in (("h", "e"), ("he", "l"), ("hel", "l"), ("hell", "o"), ("▁", "hello")):
        vocab[left + right] = len(vocab)
        merges.append((left, right))
    rust = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True)
    )
    rust.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    rust.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    rust.add_special_tokens(["<unk>", "<s>", "</s>"])
    return rust


def save_folder(folder: Path, *, template: str | None = TEMPLATE) -> Path:
    """The byte-level tokenizer as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    byte_level().save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|bos|>", "eos_token": {"content": "<|eos|>"}}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5]}))
    return folder
