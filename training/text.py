"""The text side: a byte-pair tokenizer grown on captions and a small CLIP text model."""

import random
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.captions import describe
from training.world import draw_scene

LENGTH = 32
HIDDEN = 128
START, END = "<|startoftext|>", "<|endoftext|>"


def grow_tokenizer() -> CLIPTokenizer:
    rng = random.Random(7)
    texts = [describe(draw_scene(rng), rng).text.lower() for _ in range(20_000)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    grown = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    like_clip = CLIPTokenizer()
    grown.normalizer = like_clip.backend_tokenizer.normalizer
    grown.pre_tokenizer = like_clip.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    grown.train_from_iterator(texts, trainer)
    import json

    merges = [tuple(pair) for pair in json.loads(grown.to_str())["model"]["merges"]]
    pieces = letters + [c + "</w>" for c in letters] + ["".join(pair) for pair in merges]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    vocabulary[START] = len(vocabulary)
    vocabulary[END] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def build(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            projection_dim=HIDDEN,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def load(folder: Path) -> tuple[CLIPTokenizer, CLIPTextModel]:
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    model = CLIPTextModel.from_pretrained(folder / "text_encoder")
    return tokenizer, model.eval().requires_grad_(False)


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> "torch.Tensor":  # noqa: F821
    return tokenizer(
        texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
