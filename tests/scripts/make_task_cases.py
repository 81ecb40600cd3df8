#!/usr/bin/env python3
"""Make cases of tasks: what `transformers.pipeline` answers with a tiny model of derived weights.

    make_task_cases.py --out DIR [NAME...]

writes DIR/NAME/ with what `save_pretrained` writes but the weights (`case.json` and `io.safetensors` say what these
are, as make_case.py has it), and `task.json`: questions, each with what the pipeline answers, in the words in which
accel has it. Scores may differ by rounding; everything else may not.

Needs: tests/scripts/requirements-cases.txt; for mask-generation and image-text-to-text-grid also torchvision==0.29.2,
with which transformers would prepare the pictures of other cases in other roundings.
"""

import argparse
import json
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import painting_cases
import series_cases
import speech_cases
import torch
import transformers
from make_case import build, checkpoint, uniform, weight_rows
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


def word_pieces(length, **more):
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
    return transformers.BertTokenizerFast(tokenizer_object=inner, model_max_length=length, **more)


def byte_pairs(length, ends=()):
    """A tokenizer as GPT-2's, that knows only the text above."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|endoftext|>", *ends], initial_alphabet=alphabet)
    inner.train_from_iterator(SENTENCES, trainer)
    more = {"additional_special_tokens": list(ends), "model_max_length": length}
    return transformers.GPT2TokenizerFast(tokenizer_object=inner, **more)


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


def chat_pairs(cls, ends, special, length, template=None):
    """A tokenizer of byte pairs with tokens for turns and pictures; what begins every text comes first of `ends`."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=160, special_tokens=[*ends, *special]))
    names = dict(zip(("bos_token", "eos_token"), ends)) if len(ends) > 1 else {"eos_token": ends[0]}
    if len(ends) > 1:
        begin = [(ends[0], inner.token_to_id(ends[0]))]
        inner.post_processor = processors.TemplateProcessing(single=f"{ends[0]} $A", special_tokens=begin)
    more = {"pad_token": ends[-1], "additional_special_tokens": special, "model_max_length": length}
    more |= {"model_input_names": ["input_ids", "attention_mask"], "chat_template": template}
    return cls(tokenizer_object=inner, **names, **more)


def llava_processor():
    tokenizer = chat_pairs(transformers.PreTrainedTokenizerFast, ["<s>", "</s>"], ["<image>", *ENDS], 256)
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    more = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return transformers.LlavaProcessor(pictures, tokenizer, chat_template=LLAVA_TEMPLATE, **more)


def qwen2_vl_processor():
    tokenizer = chat_pairs(transformers.Qwen2TokenizerFast, ["<|endoftext|>"], [*QWEN2_VL_TOKENS, *ENDS], 256)
    sizes = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 256, "max_pixels": 1024}
    pictures = transformers.Qwen2VLImageProcessor(**sizes)
    films = transformers.Qwen2VLVideoProcessor(**sizes)
    return transformers.Qwen2VLProcessor(pictures, tokenizer, films, chat_template=QWEN2_VL_TEMPLATE)


CHAT_TEMPLATE = """{{ bos_token }}{% for message in messages %}{{ '[' + message['role'] + '] ' + message['content'] + '\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"""
LLAVA_TEMPLATE = """{% for message in messages %}{{ message['role'].upper() + ': ' }}
{%- for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}
{%- for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}
{%- endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
QWEN2_VL_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}
{%- if content['type'] == 'image' or 'image' in content %}<|vision_start|><|image_pad|><|vision_end|>
{%- elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
ENDS = [f"<end_{number}>" for number in range(10)]
QWEN2_VL_TOKENS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


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


def detr(**more):
    backbone = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}
    backbone |= {"layer_type": "basic", "out_indices": [2, 3, 4]}
    size = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4, "num_queries": 12}
    size |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    size |= {"use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False, "backbone_config": backbone}
    return size | names("cat", "dog", "bird", "fish", "horse", "cow") | more


def blip(text=None):
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    written = {"vocab_size": 240, "max_position_embeddings": 64, "bos_token_id": 2, "sep_token_id": 3, "pad_token_id": 0}
    text_config = size | written | {"encoder_hidden_size": 32} | (text or {})
    return {"text_config": text_config, "vision_config": size | {"image_size": 32, "patch_size": 8}}


def llava(**more):
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    text = size | {"model_type": "llama", "vocab_size": 160, "num_key_value_heads": 2, "max_position_embeddings": 256}
    image = size | {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8, "num_hidden_layers": 3}
    return {"text_config": text, "vision_config": image, "image_token_index": 2} | more


def qwen2_vl():
    text = {"vocab_size": 160, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 256}
    text |= {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "bos_token_id": 0, "eos_token_id": 0}
    image = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4}
    tokens = {"vision_start_token_id": 3, "vision_end_token_id": 4, "image_token_id": 5, "video_token_id": 6}
    return {"text_config": text, "vision_config": image} | tokens


def sam():
    image = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_dim": 64, "image_size": 32}
    image |= {"patch_size": 8, "output_channels": 32, "num_pos_feats": 16, "window_size": 2, "global_attn_indexes": [1]}
    prompt = {"hidden_size": 32, "image_size": 32, "patch_size": 8, "image_embedding_size": 4}
    drawn = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 4, "iou_head_hidden_dim": 32}
    return {"vision_config": image, "prompt_encoder_config": prompt, "mask_decoder_config": drawn}


def sam_processor():
    edges = {"height": 32, "width": 32}, {"height": 16, "width": 16}
    sizes = dict(zip(("pad_size", "mask_pad_size"), edges))
    return transformers.SamImageProcessor(size={"longest_edge": 32}, mask_size={"longest_edge": 16}, **sizes)


def names(*labels):
    return {"id2label": dict(enumerate(labels)), "label2id": {label: at for at, label in enumerate(labels)}}


def picture():
    """Colours that run across, with a square in them."""
    rows, columns = np.mgrid[0:40, 0:60]
    pixels = np.stack([rows * 6, columns * 4, (rows * columns) % 256], -1).astype(np.uint8)
    pixels[10:25, 30:50] = [250, 240, 10]
    return Image.fromarray(pixels)


def tall_picture():
    """Stripes and a disc, higher than wide."""
    rows, columns = np.mgrid[0:50, 0:24]
    pixels = np.stack([rows * 5, (columns // 4) % 2 * 200, 255 - rows * 4], -1).astype(np.uint8)
    pixels[(rows - 30) ** 2 + (columns - 12) ** 2 < 60] = [20, 200, 240]
    return Image.fromarray(pixels)


PICTURES = {"picture.png": picture, "tall.png": tall_picture}


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


def object_detection(pipe):
    for name, thresholds in (("picture.png", (None, 0.0)), ("tall.png", (0.3, 0.6))):
        for threshold in thresholds:
            options = {} if threshold is None else {"threshold": threshold}
            found = pipe(PICTURES[name](), **options)
            yield {"file": name}, options, [{"things": found}]


def written(pipe):
    """Texts, as the pipeline writes them, and with fewer tokens."""
    for text in SENTENCES[:3]:
        yield {"text": text}, {}, [], *pipe(text)[0].values(), {}
    yield {"text": SENTENCES[3]}, {}, [], *pipe(SENTENCES[3], max_new_tokens=7)[0].values(), {"max_tokens": 7}
    penalty = {"repetition_penalty": 1.5}
    yield {"text": SENTENCES[4]}, {}, [], *pipe(SENTENCES[4], **penalty)[0].values(), penalty


def captions(pipe):
    for name, picture in PICTURES.items():
        yield {"file": name}, {}, [], pipe(picture())[0]["generated_text"], {}
    for options in ({"max_new_tokens": 5}, {"generate_kwargs": {"repetition_penalty": 1.5}}):
        generation = {"max_tokens": 5} if "max_new_tokens" in options else options["generate_kwargs"]
        yield {"file": "tall.png"}, {}, [], pipe(tall_picture(), **options)[0]["generated_text"], generation


def conversations(pipe):
    """About one picture, two, and none, after what was said before, with fewer tokens and with a penalty."""
    said = [{"role": "system", "content": SENTENCES[1]}, {"role": "user", "content": "Tea?"}]
    said += [{"role": "assistant", "content": "In Lisbon, coffee."}]
    for files, before, options in (
        (["picture.png"], [], {}),
        (["tall.png"], [], {"repetition_penalty": 1.3}),
        (["tall.png", "picture.png"], said, {}),
        (["picture.png"], said, {"max_new_tokens": 6}),
        ([], said, {}),
    ):
        messages = [*before, {"role": "user", "content": QUESTION}]
        parts = [[{"type": "text", "text": message["content"]}] for message in messages]
        parts[-1] = [{"type": "image"} for _ in files] + parts[-1]
        asked = [{"role": message["role"], "content": part} for message, part in zip(messages, parts)]
        pictures = [PICTURES[file]() for file in files] or None
        found = pipe(images=pictures, text=asked, return_full_text=False, generate_kwargs=dict(options))
        renamed = {"max_new_tokens": "max_tokens"}
        generation = {renamed.get(key, key): value for key, value in options.items()}
        yield {"pictures": [files, messages]} if files else {"chat": messages}, {}, [], found[0]["generated_text"], generation


def continuations(pipe):
    """Of texts, and of conversations where there is a template; with fewer tokens and with a penalty."""
    said = [{"role": "system", "content": SENTENCES[1]}, {"role": "user", "content": "Tea?"}]
    said += [{"role": "assistant", "content": "In Lisbon, coffee."}, {"role": "user", "content": QUESTION}]
    texts = [(text, {"max_new_tokens": 40}) for text in SENTENCES[:3]]
    texts += [(SENTENCES[3], {"max_new_tokens": 7}), (SENTENCES[4], {"max_new_tokens": 30, "repetition_penalty": 1.5})]
    chats = [(said[-1:], {"max_new_tokens": 40}), (said, {"max_new_tokens": 24})]
    for asked, options in texts + (chats if pipe.tokenizer.chat_template else []):
        # Spaces before punctuation are the model's own.
        plain = {"return_full_text": False, "clean_up_tokenization_spaces": False, "do_sample": False}
        found = pipe(asked, **plain, **options)
        renamed = {"max_new_tokens": "max_tokens"}
        generation = {renamed.get(key, key): value for key, value in options.items()}
        yield {"text" if asked in SENTENCES else "chat": asked}, {}, [], found[0]["generated_text"], generation


def mask_generation(pipe):
    for name, threshold in (("picture.png", None), ("tall.png", None), ("tall.png", 0.95)):
        options = {} if threshold is None else {"threshold": threshold}
        asked = {} if threshold is None else {"pred_iou_thresh": threshold}
        found = pipe(PICTURES[name](), output_rle_mask=True, **asked)
        shapes = [{"score": float(score), **rle} for score, rle in zip(found["scores"], found["rle_mask"])]
        yield {"file": name}, options, [{"masks": shapes}]


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
SEEDS |= {"image-to-text": 2, "image-to-text-within": 6, "mask-generation": 6}
# Weights that are so many times larger, so that some masks are sure ones, and some texts end by themselves.
LARGER = {"image-to-text": {"predictions.bias": 16.0}, "image-to-text-within": {"predictions.bias": 16.0}}
SURE = {"output_hypernetworks_mlps.*proj_out": 128.0, "iou_prediction_head.proj_out": 4.0, "upscale_conv2.bias": 16.0}
LARGER |= {"mask-generation": SURE}
SEEDS |= {"speech-whisper": 9, "speech-whisper-english": 20, "text-generation-prefix": 2}
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
    "text-classification-bart": (
        "text-classification", "BartForSequenceClassification", bart(**names("joy", "anger", "calm")),
        lambda: marked_byte_pairs(96), text_classification, {},
    ),
    "question-answering-bart": (
        "question-answering", "BartForQuestionAnswering", bart(), lambda: marked_byte_pairs(90), question_answering, {},
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
    "text-generation": (
        "text-generation", "LlamaForCausalLM",
        {"vocab_size": 160, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
        lambda: chat_pairs(transformers.PreTrainedTokenizerFast, ["<s>", "</s>"], ENDS, 256, CHAT_TEMPLATE),
        continuations,
        {"generation_config.json": {"bos_token_id": 0, "eos_token_id": list(range(1, 12)), "repetition_penalty": 1.1}
         | {"no_repeat_ngram_size": 3, "min_new_tokens": 4, "suppress_tokens": [60, 61], "begin_suppress_tokens": [80]}
         | {"bad_words_ids": [[70], [71, 72]], "do_sample": True, "temperature": 0.6, "top_p": 0.9}},
    ),
    # A mixture of experts.
    "text-generation-experts": (
        "text-generation", "MixtralForCausalLM",
        {"vocab_size": 160, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
        | {"num_local_experts": 8, "num_experts_per_tok": 2},
        lambda: chat_pairs(transformers.PreTrainedTokenizerFast, ["<s>", "</s>"], ENDS, 256, CHAT_TEMPLATE),
        continuations, {"generation_config.json": {"bos_token_id": 0, "eos_token_id": list(range(1, 12))}},
    ),
    # A prefix, and settings of the task.
    "text-generation-prefix": (
        "text-generation", "GPT2LMHeadModel",
        {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "eos_token_id": 0}
        | {"task_specific_params": {"text-generation": {"prefix": "In short: ", "do_sample": True, "min_length": 60}}},
        lambda: byte_pairs(256, ENDS), continuations,
        {"generation_config.json": {"eos_token_id": list(range(11)), "forced_eos_token_id": 0}},
    ),
    "object-detection": (
        "object-detection", "DetrForObjectDetection", detr(),
        lambda: transformers.DetrImageProcessor(size={"shortest_edge": 40, "longest_edge": 64}), object_detection, {},
    ),
    "object-detection-points": (
        "object-detection", "DeformableDetrForObjectDetection",
        detr(num_feature_levels=3, num_queries=20, encoder_n_points=2, decoder_n_points=2),
        lambda: transformers.DeformableDetrImageProcessor(size={"shortest_edge": 40, "longest_edge": 64}),
        object_detection, {},
    ),
    "image-to-text": (
        "image-to-text", "BlipForConditionalGeneration", blip(),
        lambda: (word_pieces(64), transformers.BlipImageProcessor(size={"height": 32, "width": 32})), captions,
        {"generation_config.json": {"max_length": 40, "no_repeat_ngram_size": 3, "begin_suppress_tokens": [3]}},
    ),
    # What writes has settings of its own.
    "image-to-text-within": (
        "image-to-text", "BlipForConditionalGeneration",
        blip(text={"no_repeat_ngram_size": 2, "max_length": 48, "num_beams": 3}),
        lambda: (word_pieces(64, clean_up_tokenization_spaces=True), transformers.BlipImageProcessor(size={"height": 32, "width": 32})), captions,
        {"generation_config.json": None},
    ),
    "image-text-to-text": (
        "image-text-to-text", "LlavaForConditionalGeneration", llava(), llava_processor, conversations,
        {"generation_config.json": {"bos_token_id": 0, "eos_token_id": [1, *range(3, 13)], "no_repeat_ngram_size": 3}
         | {"max_new_tokens": 40, "min_new_tokens": 3, "begin_suppress_tokens": [80]}}
        | {"chat_template.jinja": None, "chat_template.json": {"chat_template": LLAVA_TEMPLATE}},
    ),
    "image-text-to-text-grid": (
        "image-text-to-text", "Qwen2VLForConditionalGeneration", qwen2_vl(), qwen2_vl_processor, conversations,
        {"generation_config.json": {"bos_token_id": 0, "eos_token_id": [2, 0, *range(7, 17)], "do_sample": True}
         | {"top_k": 1, "temperature": 0.01, "no_repeat_ngram_size": 3, "max_length": 150}},
    ),
    "mask-generation": ("mask-generation", "SamModel", sam(), sam_processor, mask_generation, {}),
    "image-classification": (
        "image-classification", "ViTForImageClassification",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        | {"image_size": 32, "patch_size": 8} | names("cat", "dog", "bird", "fish", "horse", "cow"),
        lambda: transformers.ViTImageProcessor(size={"height": 32, "width": 32}), image_classification, {},
    ),
}  # fmt: skip
CASES |= series_cases.CASES | painting_cases.CASES | speech_cases.cases(SENTENCES)


def kind(part):
    """How a pipeline names what prepares inputs."""
    names = {transformers.ImageProcessingMixin: "image_processor", transformers.ProcessorMixin: "processor"}
    return next((name for parent, name in names.items() if isinstance(part, parent)), "tokenizer")


def make(name, out, seed):
    if callable(CASES[name]):
        return CASES[name](name, out, seed)
    task, class_name, config, prepares, questions, files = CASES[name]
    cls = getattr(transformers, class_name)
    with tempfile.TemporaryDirectory() as folder:
        folder, parts = Path(folder), prepares()
        parts = parts if isinstance(parts, tuple) else (parts,)
        # A class without a pipeline answers itself, of inputs as they are.
        preparing = {kind(part): part for part in parts if part is not None}
        build(cls, config | {"model_type": cls.config_class.model_type}, seed).save_pretrained(folder)
        for part in preparing.values():
            part.save_pretrained(folder)
        path, stored = checkpoint(folder)
        for file, value in files.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).unlink(missing_ok=True)
            if value is not None:
                (folder / file).write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
        rows, weights, verbatim = weight_rows(stored, cls.from_pretrained(folder), seed)
        for row in rows:
            factors = [factor for pattern, factor in LARGER.get(name, {}).items() if re.search(pattern, row[0])]
            if factors:
                row[4] *= factors[0]
                weights[row[0]] = uniform(*row[:2], *row[3:], seed)
        save_file(weights, path, metadata={"format": "pt"})
        model = cls.from_pretrained(folder, attn_implementation="eager").eval()
        # The pipeline of sounds has no parameter for a processor.
        if task == "automatic-speech-recognition" and "processor" in preparing:
            processor = preparing.pop("processor")
            preparing = {name: getattr(processor, name) for name in processor.attributes}
        name_of_pipe = "feature-extraction" if task == "embedding" else task
        pipe = transformers.pipeline(name_of_pipe, model, **preparing) if preparing else model
        asked = [dict(zip(("input", "options", "expected", "text", "generation"), one)) for one in questions(pipe)]
        path.unlink()
        for file in (file for file in PICTURES if file in json.dumps(asked)):
            PICTURES[file]().save(folder / file)
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
