"""Cases of paintings for make_task_cases.py: what Diffusers' StableDiffusionPipeline and FluxPipeline paint with tiny parts.

A case is the directory that `save_pretrained` writes, but for the weights: each part has a `case.json` and an
`io.safetensors` beside its configuration. Pictures are kept as files.
"""

import json
import shutil
import tempfile
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from make_case import build, checkpoint, weight_rows
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

TEXT = """A swarm of small machines paints what a large one does, if they share their work well.
The river that runs through Paris; it isn't red! 42 cats drink café au lait in London."""
FIRST, LAST = "<|startoftext|>", "<|endoftext|>"
LENGTH = 20


def clip_tokenizer(folder, fast=False, **more):
    """A tokenizer as CLIP's, whose words are those of the text above."""
    inner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    inner.normalizer = normalizers.Lowercase()
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(words, "removed", invert=True), bytes_of])
    inner.train_from_iterator(TEXT.splitlines(), trainers.BpeTrainer(vocab_size=130, end_of_word_suffix="</w>"))
    merges = [tuple(merge) for merge in json.loads(inner.to_str())["model"]["merges"]]
    alphabet = list(transformers.models.clip.tokenization_clip.bytes_to_unicode().values())
    vocabulary = alphabet + [letter + "</w>" for letter in alphabet] + ["".join(merge) for merge in merges]
    vocabulary += [FIRST, LAST]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(merge) for merge in merges) + "\n")
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = transformers.CLIPTokenizer(*files, model_max_length=LENGTH, **more)
    if fast:
        tokenizer.save_pretrained(folder)
        return transformers.CLIPTokenizerFast.from_pretrained(folder)
    return tokenizer


def text_config(tokenizer):
    size = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return size | ends | {"intermediate_size": 24, "max_position_embeddings": LENGTH, "hidden_act": "quick_gelu"}


UNET = {"sample_size": 4, "block_out_channels": [8, 16], "layers_per_block": 1, "cross_attention_dim": 16}
UNET |= {"norm_num_groups": 4, "attention_head_dim": 4}
UNET |= {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
VAE = {"block_out_channels": [4, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
VAE |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
FLUX = {"patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8}
FLUX |= {"num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 16, "axes_dims_rope": [4, 2, 2]}
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SAFETY = {
    "projection_dim": 12,
    "vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    | {"image_size": 16, "patch_size": 8, "projection_dim": 12},
}


def concepts(checker):
    """Concepts that some pictures are near to, and some are not: the library begins with ones."""
    random = torch.Generator("cpu").manual_seed(3)
    for name, threshold in (("special_care_embeds", 0.14), ("concept_embeds", 0.66)):
        vectors = getattr(checker, name)
        vectors.data = torch.randn(vectors.shape, generator=random)
        getattr(checker, name + "_weights").data.fill_(threshold)


def derive(folder, cls, config, seed, name):
    """A part with weights that follow from their names; what tells them is written beside it."""
    folder.mkdir()
    config = config if issubclass(cls, diffusers.ModelMixin) else config | {"model_type": cls.config_class.model_type}
    model = build(cls, config, seed)
    if cls is StableDiffusionSafetyChecker:
        concepts(model)
    model.save_pretrained(folder)
    path, stored = checkpoint(folder)
    rows, weights, verbatim = weight_rows(stored, cls.from_pretrained(folder), seed)
    save_file(weights, path, metadata={"format": "pt"})
    library = "diffusers" if issubclass(cls, diffusers.ModelMixin) else "transformers"
    case = {"case": name, "model_type": config.get("model_type", ""), "class": cls.__name__, "library": library}
    case |= {"weight_seed": seed, "inputs": [], "scalar_inputs": {}, "outputs": [], "tensors": rows}
    (folder / "case.json").write_text(json.dumps(case))
    save_file({"w." + name: values for name, values in verbatim.items()}, folder / "io.safetensors")
    return cls.from_pretrained(folder).eval()


def asked():
    """What is asked, and how: the defaults first."""
    yield "Small machines share a red river.", {}, 0
    painting = {"steps": 4, "guidance": 3.0, "negative": "42 cats!", "width": 40, "height": 24}
    yield "It isn't café au lait!", painting, 7
    yield "London <|endoftext|> Paris", {"steps": 6, "guidance": 1.0}, 2**40 + 3
    yield "", {"steps": 5, "height": 48, "width": 16}, 11


def asked_flux():
    # The size by default would take a minute.
    yield "Small machines share a red river.", {"width": 32, "height": 48}, 0
    yield "It isn't café au lait!", {"steps": 4, "guidance": 7.0, "width": 48, "height": 32}, 7


def asked_schnell():
    yield "Small machines share a red river.", {"steps": 4, "width": 32, "height": 16}, 3


def painter(pipe, folder, questions):
    for number, (prompt, painting, seed) in enumerate(questions):
        sizes = {key: painting[key] for key in ("width", "height") if key in painting}
        names = {"steps": "num_inference_steps", "guidance": "guidance_scale", "negative": "negative_prompt"}
        call = {names[key]: value for key, value in painting.items() if key in names} | sizes
        found = pipe(prompt, generator=torch.Generator("cpu").manual_seed(seed % 2**32), **call)
        held_back = (getattr(found, "nsfw_content_detected", None) or [False])[0]
        name = f"picture-{number}.png"
        if not held_back:
            found.images[0].save(folder / name)
        question = {"input": {"text": prompt}, "options": {"painting": painting}, "generation": {"seed": seed}}
        yield question | {"expected": [] if held_back else [{"picture": name}]}


def stable_diffusion(scheduler, tokens, unet=None, checked=False):
    def pipeline(folder, seed, name):
        tokenizer = clip_tokenizer(folder / "tokenizer", **tokens)
        text = derive(folder / "text_encoder", transformers.CLIPTextModel, text_config(tokenizer), seed, name)
        network = derive(folder / "unet", diffusers.UNet2DConditionModel, UNET | (unet or {}), seed, name)
        vae = derive(folder / "vae", diffusers.AutoencoderKL, VAE, seed, name)
        parts = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        if checked:
            checker = derive(folder / "safety_checker", StableDiffusionSafetyChecker, SAFETY, seed, name)
            size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
            parts = {"safety_checker": checker, "feature_extractor": transformers.CLIPImageProcessor(**size)}
        return diffusers.StableDiffusionPipeline(vae, text, tokenizer, network, scheduler(), **parts)

    return make(pipeline, asked, tokens)


def flux(scheduler, questions, guided):
    def pipeline(folder, seed, name):
        from make_task_cases import t5, unigrams

        tokenizer, tokenizer_2 = clip_tokenizer(folder / "tokenizer", pad_token=LAST), unigrams(512)
        text = derive(folder / "text_encoder", transformers.CLIPTextModel, text_config(tokenizer), seed, name)
        size = t5(d_model=16, d_ff=24, num_layers=1, num_heads=2)
        text_2 = derive(folder / "text_encoder_2", transformers.T5EncoderModel, size, seed, name)
        network = derive(folder / "transformer", diffusers.FluxTransformer2DModel, FLUX | guided, seed, name)
        plain = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1159, "scaling_factor": 0.3611}
        vae = derive(folder / "vae", diffusers.AutoencoderKL, VAE | plain, seed, name)
        return diffusers.FluxPipeline(scheduler(), vae, text, tokenizer, text_2, tokenizer_2, network)

    return make(pipeline, questions, {"pad_token": LAST})


def make(pipeline, questions, tokens):
    def made(name, out, seed):
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            (folder / "tokenizer").mkdir()
            pipe = pipeline(folder, seed, name)
            pipe.save_pretrained(folder)
            settings = folder / "tokenizer" / "tokenizer_config.json"
            if tokens["pad_token"] != LAST:
                # As Stable Diffusion 2 has it: of its two files, the other one is right.
                older = json.loads(settings.read_text()) | {"pad_token": LAST}
                del older["added_tokens_decoder"]
                settings.write_text(json.dumps(older))
            pipe = type(pipe).from_pretrained(folder)
            assert pipe.tokenizer.pad_token == tokens["pad_token"]
            pipe.set_progress_bar_config(disable=True)
            found = list(painter(pipe, folder, questions()))
            for path in folder.glob("*/config.json"):
                # Where the parts were found is nobody's business.
                config = {key: value for key, value in json.loads(path.read_text()).items() if key != "_name_or_path"}
                path.write_text(json.dumps(config, indent=2) + "\n")
            for path in folder.glob("*/*.safetensors"):
                if path.name != "io.safetensors":
                    path.unlink()
            (folder / "task.json").write_text(json.dumps({"task": "text-to-image", "questions": found}))
            target = out / name
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(folder, target)
        print(target, f"{len(found)} questions")

    return made


CASES = {
    # As Stable Diffusion 1 has it, and with the slips that the pipeline mends.
    "text-to-image": stable_diffusion(
        lambda: diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=0, **NOISE), {"pad_token": LAST},
    ),
    # As Stable Diffusion 2 has it.
    "text-to-image-velocity": stable_diffusion(
        lambda: diffusers.DDIMScheduler(prediction_type="v_prediction", set_alpha_to_one=False, **NOISE),
        {"pad_token": "!"}, {"use_linear_projection": True, "attention_head_dim": [2, 4]},
    ),
    "text-to-image-checked": stable_diffusion(
        lambda: diffusers.EulerDiscreteScheduler(**NOISE), {"pad_token": LAST, "fast": True}, checked=True,
    ),
    # As FLUX.1-dev has it.
    "text-to-image-flux": flux(
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0), asked_flux,
        {"guidance_embeds": True},
    ),
    # As FLUX.1-schnell has it, but for a shift that shows.
    "text-to-image-flux-fixed": flux(
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=1.7), asked_schnell, {"guidance_embeds": False},
    ),
}  # fmt: skip
