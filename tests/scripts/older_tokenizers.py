#!/usr/bin/env python3
"""Writes small vocabularies as models of before tokenizer.json have them, and what transformers' tokenizers make of texts.

    pip install transformers==4.57.6 sentencepiece==0.2.3 protobuf==7.36.2
    python tests/scripts/older_tokenizers.py pipelines/tests/data/tokenizers

Each folder is a model without weights: the files of its vocabulary, tokenizer_config.json, and in expected.json the tokens
of texts and pairs, and the texts of these tokens.
"""

import argparse
import io
import json
import pathlib
import shutil
import tempfile

import sentencepiece
import transformers
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer

ROOT = pathlib.Path(__file__).parents[2]
TEXTS = [
    "Hello, world!",
    "  a text  with   many spaces ",
    "Ünïcödé in a Café: naïve, Straße, ﬁne ligatures",
    "中文字符 between English words",
    "1,234.5 and 10% of 42,",
    "it's what we'll do, isn't it?",
    "a tab\tand a\nnew line\r\n",
    "a smile 🙂 at the end",
    "fill in the <mask> here, or the [MASK] there",
    "<s> is special </s> and <extra_id_0> too <|endoftext|>",
    "``quoted'' “text” …",
    "ALL CAPITALS AND camelCase",
    "<start_of_turn>user",
    ">>de<< to be translated",
    "e\u0301 combined, \u200bzero width, \u00a0no break",
    "",
]
PAIRS = [["Who wrote it?", "Ada wrote it in London."]]


def corpus():
    lines = (ROOT / "README.md").read_text().splitlines() + (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    return [line for line in lines if line.strip()] + TEXTS[:8]


def sentence_piece(path, **how):
    model = io.BytesIO()
    settings = {"vocab_size": 420, "character_coverage": 0.995, "minloglevel": 2, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus()), model_writer=model, **settings | how)
    path.write_bytes(model.getvalue())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    out = parser.parse_args().out

    def case(name, kind, write, config=None, files=None, fast="Fast"):
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write(folder)
        for file, value in (files or {}).items():
            (folder / file).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        if config is not None:
            config = {"tokenizer_class": kind, "clean_up_tokenization_spaces": False} | config
            (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
        with tempfile.TemporaryDirectory() as copy:
            shutil.copytree(folder, copy, dirs_exist_ok=True)
            tokenizer = getattr(transformers, kind + fast).from_pretrained(copy)
        text = lambda ids: tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        rows = []
        for given in TEXTS:
            ids = tokenizer(given)["input_ids"]
            bare = tokenizer(given, add_special_tokens=False)["input_ids"]
            rows.append({"text": given, "ids": ids, "bare": bare, "decoded": text(ids)})
        pairs = []
        # Tokenizers that are not fast give types to models that know none.
        for first, second in PAIRS if fast else []:
            told = tokenizer(first, second, return_token_type_ids=True)
            pairs.append({"texts": [first, second], "ids": told["input_ids"], "types": told["token_type_ids"]})
        names = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"]
        special = {name: getattr(tokenizer, name + "_token_id") for name in names if getattr(tokenizer, name + "_token")}
        told = {"transformers": transformers.__version__, "special": special, "texts": rows, "pairs": pairs}
        (folder / "expected.json").write_text(json.dumps(told, ensure_ascii=False) + "\n")

    def word_piece(folder, **how):
        trained = BertWordPieceTokenizer(**how)
        trained.train_from_iterator(corpus(), vocab_size=400, min_frequency=2)
        trained.save_model(str(folder))

    def merged(specials, bos=None):
        def write(folder):
            trained = ByteLevelBPETokenizer()
            trained.train_from_iterator(corpus(), vocab_size=420, min_frequency=2, special_tokens=specials)
            trained.save_model(str(folder))

        return write

    case("bert", "BertTokenizer", word_piece, {})
    # As the first BERT was published: nothing beside the vocabulary but the model's configuration.
    case("bert-bare", "BertTokenizer", word_piece, None, {"config.json": {"model_type": "bert"}})
    cased = lambda folder: word_piece(folder, lowercase=False, strip_accents=False)
    case("bert-cased", "BertTokenizer", cased, {"do_lower_case": False, "tokenize_chinese_chars": False})
    case("bert-accents", "DistilBertTokenizer", word_piece, {"do_lower_case": True, "strip_accents": False})
    case("gpt2", "GPT2Tokenizer", merged(["<|endoftext|>"]), {})
    added = {"<|pad|>": 420, "wholeword": 421}
    case("gpt2-added", "GPT2Tokenizer", merged(["<|endoftext|>"]), {"add_bos_token": True, "pad_token": "<|pad|>"},
         {"added_tokens.json": added})
    roberta = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    case("roberta", "RobertaTokenizer", merged(roberta), {})
    case("bart", "BartTokenizer", merged(roberta), {"add_prefix_space": True})
    whisper = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    case("whisper", "WhisperTokenizer", merged(["<|endoftext|>", *whisper]), {"additional_special_tokens": whisper})
    case("qwen2", "Qwen2Tokenizer", merged(["<|endoftext|>"]), {})

    spiece = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    case("t5", "T5Tokenizer", lambda folder: sentence_piece(folder / "spiece.model", **spiece), {"extra_ids": 5})
    # The table of characters takes most of a small model, so some do without.
    plain = {"normalization_rule_name": "identity"}
    first = lambda folder: sentence_piece(folder / "spiece.model", **spiece, **plain)
    case("t5-first", "T5Tokenizer", first, {"extra_ids": 3, "legacy": False})
    llama = {"model_type": "bpe", "byte_fallback": True, "split_digits": True, "normalization_rule_name": "identity",
             "vocab_size": 620, "remove_extra_whitespaces": False}
    write = lambda folder: sentence_piece(folder / "tokenizer.model", **llama)
    case("llama", "LlamaTokenizer", write, {})
    case("llama-first", "LlamaTokenizer", write, {"legacy": False, "add_eos_token": True})
    gemma = llama | {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "pad_piece": "<pad>", "eos_piece": "<eos>",
                     "bos_piece": "<bos>", "add_dummy_prefix": False, "user_defined_symbols": "<start_of_turn>,<end_of_turn>"}
    case("gemma", "GemmaTokenizer", lambda folder: sentence_piece(folder / "tokenizer.model", **gemma), {})
    roberta = lambda folder: sentence_piece(folder / "sentencepiece.bpe.model")
    case("xlm-roberta", "XLMRobertaTokenizer", roberta, {})
    camembert = lambda folder: sentence_piece(folder / "sentencepiece.bpe.model", **plain)
    case("camembert", "CamembertTokenizer", camembert, {})
    albert = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": "[CLS],[SEP],[MASK]"}
    case("albert", "AlbertTokenizer", lambda folder: sentence_piece(folder / "spiece.model", **albert), {})
    deberta = {"pad_id": 0, "pad_piece": "[PAD]", "bos_id": 1, "bos_piece": "[CLS]", "eos_id": 2, "eos_piece": "[SEP]",
               "unk_id": 3, "unk_piece": "[UNK]"}
    case("deberta-v2", "DebertaV2Tokenizer", lambda folder: sentence_piece(folder / "spm.model", **deberta, **plain), {})

    def marian(folder):
        sentence_piece(folder / "source.spm")
        sentence_piece(folder / "target.spm", vocab_size=300)
        read = lambda file: sentencepiece.SentencePieceProcessor(model_file=str(folder / file))
        pieces = [spm.id_to_piece(place) for spm in (read("source.spm"), read("target.spm")) for place in range(len(spm))]
        # Some pieces have no number, and some tokens no piece.
        tokens = ["</s>", "<unk>", ">>de<<"] + [piece for place, piece in enumerate(pieces) if place > 2 and place % 9]
        tokens = [*dict.fromkeys(tokens + ["<pad>"])]
        vocabulary = {token: place for place, token in enumerate(tokens)}
        (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0) + "\n")

    case("marian", "MarianTokenizer", marian, {"source_lang": "en", "target_lang": "de"}, fast="")


if __name__ == "__main__":
    main()
