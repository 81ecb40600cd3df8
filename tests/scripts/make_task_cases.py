#!/usr/bin/env python3
"""Make cases of tasks: what `transformers.pipeline` answers with a tiny model of derived weights.

    make_task_cases.py --out DIR [NAME...]

writes DIR/NAME/ with what `save_pretrained` writes but the weights (`case.json` and `io.safetensors` say what these
are, as make_case.py has it), and `task.json`: questions, each with what the pipeline answers, in the words in which
accel has it. Scores may differ by rounding; everything else may not.

Needs: tests/scripts/requirements-cases.txt.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import speech_cases
import torch
import transformers
from make_case import build, checkpoint, weight_rows
from PIL import Image
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = """The capital of France is Paris, and the river that runs through it is the Seine.
Ada Lovelace wrote the first program for a machine that Charles Babbage had not built yet.
In London, people drink tea; in Lisbon they drink coffee. Is that true? It isn't!
A swarm of small machines can do what a large one does, if they share their work well.
Grace Hopper worked in New York, and found a moth in a relay of the Mark II."""
QUESTION = "Who wrote the first program?"
SENTENCES = TEXT.splitlines()


# --- Tokenizers ------------------------------------------------------------------------------------------------------


def word_pieces(length):
    """A tokenizer as BERT's, that knows only the text above."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=240, special_tokens=special))
    ends = [(token, inner.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return transformers.BertTokenizerFast(tokenizer_object=inner, model_max_length=length)


def byte_pairs(length):
    """A tokenizer as GPT-2's, that knows only the text above."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    inner.train_from_iterator(SENTENCES, trainer)
    return transformers.GPT2TokenizerFast(tokenizer_object=inner, model_max_length=length)


def unigrams(length):
    """A tokenizer as T5's, that knows only the text above."""
    special = ["<pad>", "</s>", "<unk>"] + [f"<extra_id_{number}>" for number in range(9)]
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=96, special_tokens=special, unk_token="<unk>")
    inner.train_from_iterator(SENTENCES, trainer)
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return transformers.T5TokenizerFast(tokenizer_object=inner, extra_ids=9, model_max_length=length)


def marked_byte_pairs(length):
    """A tokenizer as BART's, that knows only the text above."""
    ends = [f"<end_{number}>" for number in range(11)]
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *ends]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=160, special_tokens=special)
    inner.train_from_iterator(SENTENCES, trainer)
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    more = {"additional_special_tokens": ends, "model_max_length": length}
    return transformers.BartTokenizerFast(tokenizer_object=inner, **more)


# --- Models ----------------------------------------------------------------------------------------------------------


def bert(**more):
    size = {"vocab_size": 240, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return size | {"intermediate_size": 48, "max_position_embeddings": 128} | more


def t5(**more):
    size = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return size | {"decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu"} | more


def bart(**more):
    size = {"vocab_size": 160, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 96}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    return size | heads | more


def names(*labels):
    return {"id2label": dict(enumerate(labels)), "label2id": {label: at for at, label in enumerate(labels)}}


def picture():
    """Colours that run across, with a square in them."""
    rows, columns = np.mgrid[0:40, 0:60]
    pixels = np.stack([rows * 6, columns * 4, (rows * columns) % 256], -1).astype(np.uint8)
    pixels[10:25, 30:50] = [250, 240, 10]
    return Image.fromarray(pixels)


# --- What the pipelines answer, in accel's words ---------------------------------------------------------------------


def labels(found):
    return {"labels": [{"label": one["label"], "score": one["score"]} for one in found]}


def fillings(found):
    masks = found if isinstance(found[0], list) else [found]
    keys = ("score", "token", "token_str", "sequence")
    return {"fillings": [[{key: one[key] for key in keys} for one in mask] for mask in masks]}


def entities(found):
    def entity(one):
        label = one.get("entity", one.get("entity_group"))
        index = {"index": one.get("index"), "start": one["start"], "end": one["end"]}
        return {"entity": label, "score": float(one["score"]), "word": one["word"]} | index

    return {"entities": [entity(one) for one in found]}


def answers(found):
    spans = found if isinstance(found, list) else [found]
    return {"answers": [{key: one[key] for key in ("answer", "score", "start", "end")} for one in spans]}


def features(values):
    values = np.asarray(values, np.float32)
    return {"features": {"shape": list(values.shape), "values": [float(value) for value in values.flatten()]}}


# --- Cases -----------------------------------------------------------------------------------------------------------


def text_classification(pipe, top_k=None):
    for text in SENTENCES[:2]:
        yield {"text": text}, {"top_k": 9}, [labels(pipe(text, top_k=9))]
    yield {"texts": SENTENCES}, {}, [labels(pipe([text])) for text in SENTENCES]
    pair = SENTENCES[2:4]
    yield {"pair": pair}, {"top_k": 2}, [labels(pipe({"text": pair[0], "text_pair": pair[1]}, top_k=2))]


def decoder_classification(pipe):
    yield {"texts": SENTENCES[:3]}, {"top_k": 4}, [labels(pipe(text, top_k=4)) for text in SENTENCES[:3]]


def token_classification(pipe):
    for aggregation in ("none", "simple", "first", "average", "max"):
        # Words that are not known, and accents that are taken away.
        for text in [SENTENCES[1], "Zoë drinks café au lait in London."]:
            found = entities(pipe(text, aggregation_strategy=aggregation))
            yield {"text": text}, {"aggregation": aggregation}, [found]


def question_answering(pipe):
    for top_k in (1, 4):
        found = pipe(question=QUESTION, context=TEXT, top_k=top_k)
        yield {"pair": [QUESTION, TEXT]}, {"top_k": top_k}, [answers(found)]
    found = pipe(question=QUESTION, context=SENTENCES[1])
    yield {"pair": [QUESTION, SENTENCES[1]]}, {}, [answers(found)]


def fill_mask(pipe):
    for text in ("The capital of [MASK] is Paris.", "In [MASK], people drink [MASK]; it isn't tea."):
        yield {"text": text}, {}, [fillings(pipe(text))]
        yield {"text": text}, {"top_k": 2}, [fillings(pipe(text, top_k=2))]


def feature_extraction(pipe):
    yield {"texts": SENTENCES[:2]}, {}, [features(pipe(text)[0]) for text in SENTENCES[:2]]


def embedding(pipe):
    """The mean of a text's states, of length one: Sentence Transformers' modules, in NumPy."""
    for text in SENTENCES[:2]:
        mean = np.asarray(pipe(text)[0]).mean(0)
        yield {"text": text}, {}, [features(mean / np.linalg.norm(mean))]


def image_classification(pipe):
    for top_k in (None, 2):
        found = labels(pipe(picture(), **({"top_k": top_k} if top_k else {})))
        yield {"file": "picture.png"}, {"top_k": top_k} if top_k else {}, [found]


def written(pipe):
    """Texts, as the pipeline writes them, and with fewer tokens."""
    for text in SENTENCES[:3]:
        yield {"text": text}, {}, [], *pipe(text)[0].values(), {}
    yield {"text": SENTENCES[3]}, {}, [], *pipe(SENTENCES[3], max_new_tokens=7)[0].values(), {"max_tokens": 7}
    penalty = {"repetition_penalty": 1.5}
    yield {"text": SENTENCES[4]}, {}, [], *pipe(SENTENCES[4], **penalty)[0].values(), penalty


ENTITIES = names("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
SENTENCE_TRANSFORMER = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ],
    "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True},
}
# Several tokens end an answer, so that some answers of weights that know no language end by themselves.
T5_GENERATION = {"pad_token_id": 0, "eos_token_id": [1, *range(3, 12)], "decoder_start_token_id": 0}
BART_GENERATION = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": [2, *range(5, 16)]}
BART_GENERATION |= {"decoder_start_token_id": 2}
BART_GENERATION |= {"forced_bos_token_id": 0, "forced_eos_token_id": 2, "no_repeat_ngram_size": 2}
# Seeds with which some answers end by themselves, where 0 is none of them.
SEEDS = {"summarization": 7, "summarization-bart": 4, "translation": 4, "translation-greedy": 3}
SEEDS |= {"speech-whisper": 9, "speech-whisper-english": 20}
# Name: the task, the class, its configuration, what prepares inputs, the questions, other files of the model.
CASES = {
    "text-classification": (
        "text-classification", "BertForSequenceClassification", bert(**names("joy", "anger", "calm")),
        lambda: word_pieces(128), text_classification, {},
    ),
    "text-classification-decoder": (
        "text-classification", "GPT2ForSequenceClassification",
        {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "pad_token_id": 0}
        | {"problem_type": "multi_label_classification"} | names("true", "new", "dull", "long"),
        lambda: byte_pairs(128), decoder_classification, {},
    ),
    "token-classification": (
        "token-classification", "BertForTokenClassification", bert(**ENTITIES),
        lambda: word_pieces(128), token_classification, {},
    ),
    "question-answering": (
        "question-answering", "BertForQuestionAnswering", bert(),
        lambda: word_pieces(60), question_answering, {},
    ),
    "fill-mask": ("fill-mask", "BertForMaskedLM", bert(), lambda: word_pieces(128), fill_mask, {}),
    "feature-extraction": (
        "feature-extraction", "BertModel", bert(), lambda: word_pieces(128), feature_extraction, {},
    ),
    "embedding": ("embedding", "BertModel", bert(), lambda: word_pieces(128), embedding, SENTENCE_TRANSFORMER),
    "summarization": (
        "summarization", "T5ForConditionalGeneration",
        t5(task_specific_params={"summarization": {"prefix": "summarize: ", "early_stopping": True, "max_length": 40}}
           | {"translation_en_to_de": {"prefix": "to German: ", "num_beams": 1}}),
        lambda: unigrams(128), written, {"generation_config.json": T5_GENERATION | {"no_repeat_ngram_size": 2, "min_length": 8}},
    ),
    "summarization-bart": (
        "summarization", "BartForConditionalGeneration", bart(),
        lambda: marked_byte_pairs(96), written,
        {"generation_config.json": BART_GENERATION | {"max_length": 48, "min_length": 9, "length_penalty": 2.0}
         | {"early_stopping": True}},
    ),
    "translation": (
        "translation", "BartForConditionalGeneration", bart(prefix="Say: "),
        lambda: marked_byte_pairs(96), written,
        {"generation_config.json": BART_GENERATION | {"max_length": 32, "bad_words_ids": [[40], [41, 42]]}
         | {"suppress_tokens": [50, 51], "begin_suppress_tokens": [60], "early_stopping": "never"}},
    ),
    "translation-greedy": (
        "translation", "T5ForConditionalGeneration",
        t5(task_specific_params={"translation_en_to_fr": {"prefix": "to French: ", "num_beams": 1, "max_length": 30}}
           | {"translation_en_to_de": {"prefix": "to German: "}}),
        lambda: unigrams(128), written, {"generation_config.json": T5_GENERATION},
    ),
    "image-classification": (
        "image-classification", "ViTForImageClassification",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        | {"image_size": 32, "patch_size": 8} | names("cat", "dog", "bird", "fish", "horse", "cow"),
        lambda: transformers.ViTImageProcessor(size={"height": 32, "width": 32}), image_classification, {},
    ),
}  # fmt: skip
CASES |= speech_cases.cases(SENTENCES)


def make(name, out, seed):
    task, class_name, config, prepares, questions, files = CASES[name]
    cls = getattr(transformers, class_name)
    with tempfile.TemporaryDirectory() as folder:
        folder, preparing = Path(folder), prepares()
        build(cls, config | {"model_type": cls.config_class.model_type}, seed).save_pretrained(folder)
        preparing.save_pretrained(folder)
        path, stored = checkpoint(folder)
        for file, value in files.items():
            (folder / file).parent.mkdir(exist_ok=True)
            if value is None:
                (folder / file).unlink()
                continue
            (folder / file).write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
        rows, weights, verbatim = weight_rows(stored, cls.from_pretrained(folder), seed)
        save_file(weights, path, metadata={"format": "pt"})
        model = cls.from_pretrained(folder, attn_implementation="eager").eval()
        kind = "image_processor" if isinstance(preparing, transformers.ImageProcessingMixin) else "tokenizer"
        parts = {kind: preparing}
        if isinstance(preparing, transformers.ProcessorMixin):
            parts = {name: getattr(preparing, name) for name in preparing.attributes}
        pipe = transformers.pipeline("feature-extraction" if task == "embedding" else task, model, **parts)
        asked = [dict(zip(("input", "options", "expected", "text", "generation"), one)) for one in questions(pipe)]
        path.unlink()
        if kind == "image_processor":
            picture().save(folder / "picture.png")
        case = {"case": name, "model_type": cls.config_class.model_type, "class": class_name, "library": "transformers"}
        case |= {"weight_seed": seed, "inputs": [], "scalar_inputs": {}, "outputs": [], "tensors": rows}
        (folder / "case.json").write_text(json.dumps(case))
        (folder / "task.json").write_text(json.dumps({"task": task, "questions": asked}))
        save_file({"w." + name: values for name, values in verbatim.items()}, folder / "io.safetensors")
        target = out / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
    print(target, f"{len(asked)} questions")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, help="0 where the case names none")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.names or CASES:
        make(name, arguments.out, SEEDS.get(name, 0) if arguments.seed is None else arguments.seed)


if __name__ == "__main__":
    main()
