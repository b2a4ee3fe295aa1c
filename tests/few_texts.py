"""Tiny sets of texts, and a tiny package of word vectors, for tests."""

import json

import numpy as np

CLASSES = {
    "train": ["lost", "pin", "rate"],
    "valid": ["fee", "cash"],
    "test": ["limit", "topup"],
}
WORDS = {
    "lost": "card gone stolen missing",
    "pin": "code number secret forgot",
    "rate": "euro exchange pound convert",
    "fee": "charge cost price extra",
    "cash": "machine note coin withdraw",
    "limit": "maximum much allowed most",
    "topup": "add money transfer account",
}


def sentences(label, num=6):
    """Different sentences of a class."""
    words = WORDS[label].split()
    return [f"my {words[i % 4]} {words[(i + 1 + i // 4) % 4]} {i}" for i in range(num)]


def write_own(folder, folds=None, rows=None):
    """The layout of hwu64, which is also that of a user's own texts."""
    folder.mkdir(parents=True, exist_ok=True)
    if rows is None:
        rows = [(text, label) for label in WORDS for text in sentences(label)]
    lines = [json.dumps({"sentence": t, "label": label}) for t, label in rows]
    (folder / "full.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    folds = {"01": CLASSES} if folds is None else folds
    (folder / "few_shot_folds.json").write_text(json.dumps(folds), encoding="utf-8")
    return folder


def write_wordllama(folder, dim=4, dtype="F16"):
    """A tokenizer and vectors with the names and layouts of the package wordllama."""
    letters = ["▁", *"acdrtxy"]
    merges = ["a r", "▁ c", "▁c ar", "▁car d", "x y"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *letters]
    tokens += [merge.replace(" ", "") for merge in merges]
    model = {"type": "BPE", "byte_fallback": True, "merges": merges}
    model["vocab"] = {token: number for number, token in enumerate(tokens)}
    (folder / "tokenizers").mkdir(parents=True)
    (folder / "weights").mkdir()
    normalizers = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    content = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "model": model,
    }
    path = folder / "tokenizers" / "l2_supercat_tokenizer_config.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    vectors = np.random.default_rng(0).normal(size=(len(tokens), dim))
    vectors = vectors.astype({"F16": np.float16, "F32": np.float32}[dtype])
    write_vectors(folder / "weights" / "l2_supercat_256.safetensors", vectors, dtype)
    return tokens, vectors.astype(np.float32)


def write_vectors(path, vectors, kind, **changes):
    """A safetensors file of one tensor."""
    told = {"dtype": kind, "shape": list(vectors.shape)}
    told["data_offsets"] = [0, vectors.nbytes]
    header = json.dumps({"embedding.weight": told | changes}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + vectors.tobytes())
