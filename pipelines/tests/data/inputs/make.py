"""Writes the expected values beside it, by transformers and the libraries that it reads files with.

    python make.py images sounds      numpy, pillow 12.1.1, soundfile and transformers 4.57.6, without torch
    python make.py rates              numpy, torch and torchaudio

Without torch, Whisper's features come from the NumPy code that is the reference here. Pictures and sounds that are not
in files follow from whole numbers alone, in `picture` and `sound` here and in `inputs.rs`.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def noise(count):
    place = np.arange(count, dtype=np.uint64)
    mixed = (place * 2654435761) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> np.uint64(15))) * 2246822519) & 0xFFFFFFFF
    return mixed >> np.uint64(24)


def picture(height, width):
    """Slopes with noise, so that every filter has something to round. [height, width, 3]"""
    rows, columns, channels = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    slope = (rows * 5 + columns * 3 + channels * 40) // 4 % 256
    values = (slope + noise(height * width * 3).reshape(height, width, 3).astype(np.int64)) // 2
    return values.astype(np.uint8)


def sound(count, seed):
    """A rising tone with noise, as whole numbers of 16 bits."""
    place = np.arange(count, dtype=np.int64)
    tone = ((place * place // 700 + place * seed) * 97) % 16384 - 8192
    return (tone + noise(count).astype(np.int64) * 16 - 2048).astype(np.int16)


def digest(values):
    """A sum of all bits, each weighed by its place, so that it is equal only for equal values in equal order."""
    bits = np.ascontiguousarray(values, dtype=np.float32).reshape(-1).view(np.uint32).astype(np.uint64)
    weights = np.arange(bits.size, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    with np.errstate(over="ignore"):
        return format(int(((bits ^ np.uint64(0x9E3779B97F4A7C15)) * weights).sum(dtype=np.uint64)), "016x")


def some(values):
    flat = np.asarray(values, dtype=np.float32).reshape(-1)
    places = np.linspace(0, flat.size - 1, 3).astype(int)
    return [[int(place), round(float(flat[place]), 4)] for place in places]


SIZES = [(61, 47), (47, 61), (64, 64), (224, 224), (240, 427), (97, 500), (801, 800), (900, 350)]

# A processor, what differs from its defaults, and the sizes of pictures that are prepared one by one.
ALONE = [
    ("BeitImageProcessor", {}),
    ("BitImageProcessor", {}),
    ("BlipImageProcessor", {}),
    ("BlipImageProcessor", {"size": {"height": 50, "width": 70}, "resample": 0}),
    ("BlipImageProcessor", {"size": {"height": 33, "width": 21}, "resample": 1}),
    ("BlipImageProcessor", {"size": {"height": 150, "width": 61}, "resample": 4}),
    ("BlipImageProcessor", {"size": {"height": 150, "width": 61}, "resample": 5}),
    ("ChineseCLIPImageProcessor", {"size": {"height": 224, "width": 224}}),
    ("CLIPImageProcessor", {}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 41}, "crop_size": {"height": 60, "width": 37}, "resample": 1}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": {"height": 39, "width": 39}, "do_normalize": False}),
    ("CLIPImageProcessor", {"size": 55, "crop_size": 70, "do_rescale": False}),
    ("ConditionalDetrImageProcessor", {"size": {"shortest_edge": 64, "longest_edge": 100}}),
    ("ConvNextImageProcessor", {}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.95, "resample": 3}),
    ("ConvNextImageProcessor", {"size": 96}),
    ("DeiTImageProcessor", {}),
    ("DetrImageProcessor", {}),
    ("DetrImageProcessor", {"size": 60, "max_size": 99}),
    ("DetrImageProcessor", {"size": {"max_height": 77, "max_width": 123}}),
    ("DetrImageProcessor", {"size": {"height": 40, "width": 50}, "pad_size": {"height": 64, "width": 80}}),
    ("DPTImageProcessor", {}),
    ("DPTImageProcessor", {"size": {"height": 98, "width": 84}, "keep_aspect_ratio": True, "ensure_multiple_of": 14}),
    ("GLPNImageProcessor", {}),
    ("GroundingDinoImageProcessor", {"size": {"shortest_edge": 80, "longest_edge": 90}}),
    ("LevitImageProcessor", {}),
    ("LlavaImageProcessor", {"do_pad": True, "size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}),
    ("Mask2FormerImageProcessor", {"size": {"shortest_edge": 100, "longest_edge": 160}}),
    ("MaskFormerImageProcessor", {"size": {"shortest_edge": 70, "longest_edge": 200}, "size_divisor": 16}),
    ("MobileNetV1ImageProcessor", {}),
    ("MobileNetV2ImageProcessor", {}),
    ("MobileViTImageProcessor", {}),
    ("OwlViTImageProcessor", {"size": {"height": 96, "width": 90}}),
    ("PvtImageProcessor", {}),
    ("Qwen2VLImageProcessor", {"min_pixels": 3136, "max_pixels": 100352}),
    ("Qwen2VLImageProcessor", {"min_pixels": 65536, "max_pixels": 131072, "patch_size": 16, "temporal_patch_size": 1}),
    ("RTDetrImageProcessor", {}),
    ("SamImageProcessor", {}),
    ("SamImageProcessor", {"size": {"longest_edge": 130}, "pad_size": {"height": 131, "width": 140}}),
    ("SegformerImageProcessor", {}),
    ("SiglipImageProcessor", {}),
    ("ViTHybridImageProcessor", {}),
    ("ViTImageProcessor", {}),
    ("ViTImageProcessor", {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3}),
    ("ViltImageProcessor", {}),
    ("YolosImageProcessor", {"size": {"shortest_edge": 64, "longest_edge": 120}}),
]
# Processors that pad what they prepare together.
TOGETHER = ["DetrImageProcessor", "MaskFormerImageProcessor", "ViltImageProcessor", "YolosImageProcessor"]


def images():
    import transformers
    from transformers import image_utils

    def expected(processor, pictures):
        if isinstance(processor, transformers.Qwen2VLImageProcessor):
            answer = processor(pictures, return_tensors="np")
        else:
            # The sizes below 4 are ambiguous for the processors; none of the pictures has them.
            answer = processor(pictures)
        rows = []
        for place, values in enumerate(answer["pixel_values"] if "image_grid_thw" not in answer else [answer["pixel_values"]]):
            values = np.asarray(values)
            assert values.dtype in (np.float32, np.uint8), values.dtype
            row = {"shape": list(values.shape), "digest": digest(values), "some": some(values)}
            if "pixel_mask" in answer:
                row["mask"] = digest(np.asarray(answer["pixel_mask"][place]))
            if "image_grid_thw" in answer:
                row["grid"] = answer["image_grid_thw"][place].tolist()
            if "reshaped_input_sizes" in answer:
                row["resized"] = [int(edge) for edge in answer["reshaped_input_sizes"][place]]
            rows.append(row)
        return rows

    cases = []
    for name, changes in ALONE:
        processor = getattr(transformers, name)(**changes)
        config = {"image_processor_type": name, **changes}
        alone = [{"pictures": [size], "expected": expected(processor, [picture(*size)])} for size in SIZES]
        cases.append({"config": config, "saved": json.loads(processor.to_json_string()), "runs": alone})
    for name in TOGETHER:
        size = {"shortest_edge": 64} if "Vilt" in name else {"shortest_edge": 64, "longest_edge": 120}
        processor = getattr(transformers, name)(size=size)
        runs = [{"pictures": SIZES[:4], "expected": expected(processor, [picture(*size) for size in SIZES[:4]])}]
        config = {"image_processor_type": name, "size": size}
        cases.append({"config": config, "saved": json.loads(processor.to_json_string()), "runs": runs})
    for case in cases:
        case["saved"].pop("_valid_processor_keys", None)
    write(cases, "images.json")
    files(image_utils)


def files(image_utils):
    """Pictures in files, and a PNG of what load_image makes of each."""
    from PIL import Image

    small = Image.fromarray(picture(45, 38))
    photo = Image.fromarray(photograph(64, 80))
    turned = Image.Exif()
    saved = {}

    def save(name, image, **options):
        image.save(HERE / name, **options)
        saved[name] = None

    for orientation in (3, 6, 8):
        turned[0x0112] = orientation
        save(f"turned{orientation}.png", small, exif=turned)
    turned[0x0112] = 6
    save("photo.jpg", photo, quality=90, exif=turned)
    save("photo-progressive.jpg", photo, quality=80, progressive=True)
    save("photo-444.jpg", photo, quality=95, subsampling=0)
    save("grey.jpg", photo.convert("L"), quality=90)
    save("cmyk.jpg", photo.convert("CMYK"), quality=90)
    save("photo.webp", photo, quality=85)
    save("lossless.webp", small.convert("RGBA"), lossless=True)
    save("alpha.png", Image.fromarray(np.concatenate([picture(20, 30), picture(20, 30)[..., :1]], -1)))
    save("palette.png", small.quantize(16), transparency=3)
    save("bits.png", small.convert("1"))
    save("grey.png", small.convert("L"))
    save("grey-alpha.png", small.convert("LA"))
    save("grey16.png", Image.fromarray((picture(20, 30)[..., 0].astype(np.uint16) * 7)))
    rgb16(HERE / "rgb16.png")
    saved["rgb16.png"] = None
    for name in saved:
        image = image_utils.load_image(str(HERE / name))
        pixels = np.asarray(image)
        if name.endswith(".jpg"):
            image.save(HERE / (name + ".expected.png"), optimize=True)
            saved[name] = {"shape": list(pixels.shape)}
        else:
            saved[name] = {"shape": list(pixels.shape), "digest": digest(pixels)}
    write(saved, "files.json")


def photograph(height, width):
    """Soft shapes and one hard edge, which is what JPEG is made for."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    red = 128 + 100 * np.sin(rows / 17) * np.cos(columns / 23)
    green = 128 + 90 * np.cos((rows + columns) / 31)
    blue = np.where((rows - 30) ** 2 + (columns - 40) ** 2 < 400, 220, 40 + columns / 2)
    return np.clip(np.stack([red, green, blue], -1), 0, 255).astype(np.uint8)


def rgb16(path):
    """Pillow cannot write RGB of 16 bits."""
    import struct
    import zlib

    values = picture(9, 11).astype(np.uint16) * 257 - 100
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 11, 9, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    )


def sounds():
    import soundfile
    from transformers import EncodecFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

    cases = {}

    def keep(name, values, every=1):
        flat = np.asarray(values, dtype=np.float32).reshape(-1)[::every]
        flat.astype("<f4").tofile(HERE / f"{name}.f32")
        cases[name] = {"shape": list(np.asarray(values).shape), "every": every, "digest": digest(values)}

    def as_float(count, seed):
        return sound(count, seed).astype(np.float32) / 32768

    for pitches, seconds in ((80, 3), (128, 31)):
        whole = WhisperFeatureExtractor(feature_size=pitches)
        samples = as_float(16000 * seconds, 5)
        # As speech recognition's pipeline asks for it: what is longer than a window stays whole.
        longer = {"truncation": False, "padding": "longest"} if len(samples) > whole.n_samples else {}
        answer = whole(samples, sampling_rate=16000, return_attention_mask=True, return_tensors="np", **longer)
        keep(f"whisper{pitches}", answer["input_features"][0], every=97)
        cases[f"whisper{pitches}"]["mask"] = int(answer["attention_mask"].sum())
    pair = [as_float(400, 3), as_float(333, 7) + np.float32(0.25)]
    for masked in (False, True):
        extractor = Wav2Vec2FeatureExtractor(return_attention_mask=masked, do_normalize=True)
        answer = extractor(pair, padding=True, sampling_rate=16000, return_tensors="np")
        keep(f"wav2vec2-{masked}".lower(), answer["input_values"])
    mono = EncodecFeatureExtractor(chunk_length_s=0.01, overlap=0.05)
    answer = mono([as_float(1000, 3)], sampling_rate=24000, return_tensors="np")
    keep("encodec-mono", answer["input_values"])
    cases["encodec-mono"]["mask"] = int(answer["padding_mask"].sum())
    stereo = EncodecFeatureExtractor(feature_size=2, sampling_rate=48000)
    both = [np.stack([as_float(300, 3), as_float(300, 9)]), np.stack([as_float(200, 4), as_float(200, 8)])]
    answer = stereo(both, sampling_rate=48000, return_tensors="np")
    keep("encodec-stereo", answer["input_values"])

    left, right = sound(3000, 2), sound(3000, 11)
    soundfile.write(HERE / "mono.wav", left[:900], 16000)
    soundfile.write(HERE / "stereo24.wav", np.stack([left, right], 1)[:600], 44100, subtype="PCM_24")
    soundfile.write(HERE / "float.wav", (left[:500] / 32768).astype(np.float32), 22050, subtype="FLOAT")
    soundfile.write(HERE / "bytes.wav", left[:500], 8000, subtype="PCM_U8")
    soundfile.write(HERE / "stereo.flac", np.stack([left, right], 1), 44100)
    soft = np.stack([np.sin(np.arange(9000) / 20), np.sin(np.arange(9000) / 31)], 1) * 0.5
    soundfile.write(HERE / "soft.ogg", soft, 32000)
    soundfile.write(HERE / "soft.mp3", soft, 32000)
    for name in ("mono.wav", "stereo24.wav", "float.wav", "bytes.wav", "stereo.flac", "soft.ogg", "soft.mp3"):
        values, rate = soundfile.read(HERE / name, dtype="float32", always_2d=True)
        keep(name, values.T, every=13 if name.startswith("soft") else 1)
        if not name.startswith("soft"):
            (HERE / f"{name}.f32").unlink()
        cases[name]["rate"] = rate
    write(cases, "sounds.json")


def rates():
    import torch
    from torchaudio.functional import resample

    cases = []
    for source, target, count in ((8000, 16000, 300), (44100, 16000, 900), (48000, 16000, 601), (16000, 24000, 333), (22050, 48000, 200), (11025, 16000, 257), (44101, 16000, 50)):
        values = torch.from_numpy(sound(count, 5).astype(np.float32) / 32768)
        answer = resample(values.double(), source, target).float().numpy()
        usual = resample(values, source, target).numpy()
        name = f"rate-{source}-{target}"
        answer.astype("<f4").tofile(HERE / f"{name}.f32")
        cases.append({"from": source, "to": target, "count": count, "name": name, "usual_differs_by": float(abs(answer - usual).max())})
    write(cases, "rates.json")


def write(value, name):
    lines = json.dumps(value, separators=(",", ":"))
    (HERE / name).write_text(lines.replace('{"config"', '\n{"config"') + "\n")


if __name__ == "__main__":
    for part in sys.argv[1:]:
        {"images": images, "sounds": sounds, "rates": rates}[part]()
