"""Cases of speech recognition for make_task_cases.py: small models that hear, small sounds, and what is asked of them.

The pipeline gets samples at the model's rate: what it calls for other rates, torchaudio's `resample`, is computed here
with NumPy, so that no torchaudio that fits torch is needed.
"""

import io
import json
import math
import tempfile
import wave
from pathlib import Path

import numpy as np
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

RATE = 16000
# 25 steps of 40 ms: a window of one second.
STEPS = 25
LANGUAGES = ("en", "de", "fr", "haw")


# --- Sounds ----------------------------------------------------------------------------------------------------------


def chirp(seconds, rate, seed):
    """A tone that rises and falls, louder and softer."""
    time = np.arange(int(seconds * rate)) / rate
    pitch = 300 + 250 * seed + 220 * np.sin(2 * math.pi * (1.3 + seed) * time)
    loud = 0.5 + 0.4 * np.sin(2 * math.pi * (3.1 + 0.7 * seed) * time)
    return loud * np.sin(2 * math.pi * np.cumsum(pitch) / rate)


def wav(channels, rate, width):
    """A WAV file of whole numbers of so many bytes, and the samples it holds: [channels, samples], f32."""
    high = 2 ** (8 * width - 1)
    numbers = np.clip(np.round(np.stack(channels) * high), -high, high - 1)
    samples = numbers.T.astype("<i2") if width == 2 else (numbers.T + 128).astype(np.uint8)
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(len(channels))
        written.setsampwidth(width)
        written.setframerate(rate)
        written.writeframes(samples.tobytes())
    return file.getvalue(), (numbers / high).astype(np.float32)


def resampled(samples, rate):
    """Follows `_get_sinc_resample_kernel` of torchaudio's functional.py."""
    divisor = math.gcd(rate, RATE)
    old, new = rate // divisor, RATE // divisor
    base = min(old, new) * 0.99
    width = math.ceil(6 * old / base)
    places = np.arange(-width, width + old)[None] / old
    time = np.clip((np.arange(0, -new, -1)[:, None] / new + places) * base, -6, 6)
    window = np.cos(time * math.pi / 12) ** 2
    kernel = (np.sinc(time) * window * base / old).astype(np.float32)
    padded = np.pad(samples, (width, width + old))
    steps = (len(samples) + old - 1) // old + 1
    rows = [kernel @ padded[step * old : step * old + kernel.shape[1]] for step in range(steps)
            if step * old + kernel.shape[1] <= len(padded)]  # fmt: skip
    return np.concatenate(rows)[: math.ceil(new * len(samples) / old)].astype(np.float32)


def sound(name):
    """The file of that name, and what the pipeline is given for it."""
    rate, width, channels = {
        "mono.wav": (RATE, 1, [chirp(0.5, RATE, 1)]),
        "stereo.wav": (11025, 2, [chirp(0.2, 11025, 2), chirp(0.2, 11025, 3)]),
        "long.wav": (4000, 1, [chirp(2.3, 4000, 1)]),
    }[name]
    file, samples = wav(channels, rate, width)
    mono = samples.mean(0)
    return file, mono if rate == RATE else resampled(mono, rate)


# --- Models ----------------------------------------------------------------------------------------------------------


def whisper_parts(sentences, languages):
    """A tokenizer as Whisper's that knows only these sentences, with a feature extractor for short windows."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(sentences, trainers.BpeTrainer(vocab_size=90, special_tokens=[]))
    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{language}|>" for language in languages)]
    special += ["<|translate|>", "<|transcribe|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    inner.add_special_tokens([AddedToken(token, special=True) for token in special])
    times = [f"<|{0.04 * step:.2f}|>" for step in range(STEPS + 1)]
    inner.add_tokens([AddedToken(time, special=False) for time in times])
    tokenizer = transformers.WhisperTokenizerFast(
        tokenizer_object=inner, additional_special_tokens=special[1:], clean_up_tokenization_spaces=True,
        unk_token=special[0], bos_token=special[0], eos_token=special[0], pad_token=special[0],
    )  # fmt: skip
    extractor = transformers.WhisperFeatureExtractor(feature_size=12, chunk_length=1, hop_length=320)
    return transformers.WhisperProcessor(extractor, tokenizer)


def whisper_config(size):
    width = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "num_mel_bins": 12, "vocab_size": size}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    lengths = {"max_source_positions": STEPS, "max_target_positions": 40}
    tokens = {"pad_token_id": 90, "bos_token_id": 90, "eos_token_id": 90, "decoder_start_token_id": 91}
    return width | heads | lengths | tokens | {"suppress_tokens": None, "begin_suppress_tokens": None}


def whisper_generation(languages):
    """As Whisper's own files have it. Text ends at 90, the end; then come the start, languages, tasks and times."""
    start = 91
    none = start + len(languages) + 5
    common = {"bos_token_id": 90, "pad_token_id": 90, "eos_token_id": 90, "decoder_start_token_id": start}
    common |= {"max_length": 36, "min_length": 9, "max_initial_timestamp_index": 10, "no_timestamps_token_id": none}
    common |= {"return_timestamps": False, "no_repeat_ngram_size": 2, "begin_suppress_tokens": [7, 90]}
    common |= {"suppress_tokens": [3, 5, *range(start, none)], "is_multilingual": len(languages) > 0}
    if languages:
        common["lang_to_id"] = {f"<|{language}|>": start + 1 + at for at, language in enumerate(languages)}
        translate = start + 1 + len(languages)
        common["task_to_id"] = {"translate": translate, "transcribe": translate + 1}
        common["forced_decoder_ids"] = [[1, None], [2, translate + 1]]
    else:
        common["forced_decoder_ids"] = [[1, none]]
    return common


def wav2vec2_parts():
    """Characters as wav2vec 2.0's, in small letters, with one that is not told."""
    characters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.json"
        file.write_text(json.dumps({character: at for at, character in enumerate(characters)}))
        tokenizer = transformers.Wav2Vec2CTCTokenizer(str(file), do_lower_case=True)
    return transformers.Wav2Vec2Processor(transformers.Wav2Vec2FeatureExtractor(), tokenizer)


WAV2VEC2 = {"vocab_size": 33, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WAV2VEC2 |= {"intermediate_size": 48, "conv_dim": [16, 16, 16], "conv_kernel": [10, 8, 4], "conv_stride": [5, 4, 4]}
WAV2VEC2 |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}


# --- Questions -------------------------------------------------------------------------------------------------------


def asked(pipe, name, options, generation, **more):
    _, samples = sound(name)
    found = pipe({"raw": samples, "sampling_rate": RATE}, **more)
    return {"file": name}, options, [], found["text"], generation


def whisper(pipe):
    yield asked(pipe, "mono.wav", {}, {})
    for language in ("german", "haw"):
        yield asked(pipe, "mono.wav", {"language": language}, {}, generate_kwargs={"language": language})
    yield asked(pipe, "stereo.wav", {}, {})
    yield asked(pipe, "stereo.wav", {}, {"max_tokens": 4}, generate_kwargs={"max_new_tokens": 4})
    penalty = {"repetition_penalty": 1.5}
    yield asked(pipe, "mono.wav", {}, penalty, generate_kwargs=penalty)
    yield asked(pipe, "long.wav", {}, {}, return_timestamps=True)


def whisper_greedy(pipe):
    yield asked(pipe, "mono.wav", {}, {})
    yield asked(pipe, "mono.wav", {}, {"max_tokens": 7}, generate_kwargs={"max_new_tokens": 7})
    yield asked(pipe, "stereo.wav", {}, {})
    yield asked(pipe, "long.wav", {}, {}, return_timestamps=True)


def connectionist(pipe):
    for name in ("mono.wav", "stereo.wav", "long.wav"):
        yield asked(pipe, name, {}, {})


def cases(sentences):
    """As CASES of make_task_cases.py."""
    sounds = {name: sound(name)[0] for name in ("mono.wav", "stereo.wav", "long.wav")}
    # What tokenizer.json says already is left away.
    tidy = {"tokenizer_class": "WhisperTokenizer", "clean_up_tokenization_spaces": True, "eos_token": "<|endoftext|>"}
    texts = {"tokenizer_config.json": tidy, "added_tokens.json": None, "merges.txt": None, "vocab.json": None}
    texts["special_tokens_map.json"] = None
    recognition = "automatic-speech-recognition"
    times = STEPS + 1
    return {
        "speech-whisper": (
            recognition, "WhisperForConditionalGeneration", whisper_config(97 + len(LANGUAGES) + times),
            lambda: whisper_parts(sentences, LANGUAGES), whisper,
            sounds | texts | {"generation_config.json": whisper_generation(LANGUAGES)},
        ),
        "speech-whisper-english": (
            recognition, "WhisperForConditionalGeneration",
            whisper_config(97 + times) | {"task_specific_params": {recognition: {"num_beams": 1}}},
            lambda: whisper_parts(sentences, ()), whisper_greedy,
            sounds | texts | {"generation_config.json": whisper_generation(())},
        ),
        "speech-ctc": (recognition, "Wav2Vec2ForCTC", WAV2VEC2, wav2vec2_parts, connectionist, sounds),
    }  # fmt: skip
