"""The tiny CLIP's tokenizer: byte-level BPE in CLIP's own file format, trained on captions."""

import json
import pathlib

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCABULARY_SIZE = 676  # 512 bytes, the merges, two special tokens
START, END = "<|startoftext|>", "<|endoftext|>"
MAX_POSITIONS = 32

_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # as in CLIP


def _byte_symbols() -> list[str]:
  """The 256 printable stand-ins for bytes, in byte order (GPT-2's table)."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  rest = [b for b in range(256) if b not in printable]
  table = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}
  return [table[b] for b in range(256)]


def train(captions: list[str], folder: pathlib.Path) -> None:
  """Learns the merges from captions and writes CLIP's five tokenizer files into `folder`.

  The end token gets the highest id, as in CLIP. Every byte has a token, alone and at the end of a
  word, so that any text can be encoded.
  """
  model = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
  model.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
  model.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(_WORD), behavior="removed", invert=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  trainer = trainers.BpeTrainer(
    vocab_size=VOCABULARY_SIZE, end_of_word_suffix="</w>", show_progress=False
  )
  model.train_from_iterator(captions, trainer)
  merges = [tuple(pair) for pair in json.loads(model.to_str())["model"]["merges"]]
  symbols = _byte_symbols()
  tokens = symbols + [s + "</w>" for s in symbols]
  merges = merges[: VOCABULARY_SIZE - len(tokens) - 2]
  tokens += [a + b for a, b in merges] + [START, END]
  vocabulary = {token: i for i, token in enumerate(tokens)}
  _write(folder, vocabulary, merges)


def _write(folder: pathlib.Path, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
  model = tokenizers.Tokenizer(
    models.BPE(
      vocab=vocabulary, merges=merges, unk_token=END,
      continuing_subword_prefix="", end_of_word_suffix="</w>",
    )
  )  # fmt: skip
  model.normalizer = normalizers.Sequence(
    [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
  )
  model.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(_WORD), behavior="removed", invert=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  model.decoder = decoders.ByteLevel()
  model.add_special_tokens([START, END])
  model.post_processor = processors.RobertaProcessing(
    sep=(END, vocabulary[END]), cls=(START, vocabulary[START]), trim_offsets=False,
    add_prefix_space=False,
  )  # fmt: skip
  special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
  config = special | {
    "tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_POSITIONS,
    "add_prefix_space": False, "do_lower_case": True, "errors": "replace",
    "clean_up_tokenization_spaces": True,
  }  # fmt: skip
  folder.mkdir(parents=True, exist_ok=True)
  model.save(str(folder / "tokenizer.json"))
  lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
  (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
  for name, content in (
    ("vocab.json", vocabulary),
    ("special_tokens_map.json", special),
    ("tokenizer_config.json", config),
  ):
    text = json.dumps(content, ensure_ascii=False, indent=None if name == "vocab.json" else 2)
    (folder / name).write_text(text + "\n", encoding="utf-8")
