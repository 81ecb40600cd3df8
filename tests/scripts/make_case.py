#!/usr/bin/env python3
"""Make a reference case: what a model class of transformers or diffusers answers for a small configuration.

The class is built from its configuration; every tensor of its checkpoint is filled with numbers that follow from the
tensor's name; the checkpoint is loaded and run in f32 on the CPU, on one thread, with eager attention. The same run in
f64 tells how far rounding alone moves each output, and so how much an engine may differ. Weights and large random
inputs are not stored: whoever reads the case computes them again, bit for bit.

    make_case.py --class LlamaForCausalLM --config config.json --out DIR \\
        --input input_ids=int:2x9:0..98 --input attention_mask=mask:2x9 --generate input_ids,attention_mask
    make_case.py --class UNet2DConditionModel --config config.json --out DIR --inputs inputs.json

writes DIR/<model type>__<class>__<variant>/ with config.json, generation_config.json where the library has one,
case.json (weights, inputs, outputs, tolerances) and io.safetensors (what does not follow from a name).

An input is NAME=VALUE on the command line, or an entry of the JSON object in the file that --inputs names:

    int:2x9:0..98[:int32]            integers of that range, both ends included, int64 unless told
    u:2x3x30x30[:CENTER:SCALE]       uniform floats in [CENTER - SCALE, CENTER + SCALE), 0.5 and 0.5 unless told;
                                     SCALE is a power of two, which keeps them exact
    const:2x64x64:1[:float32]        one value everywhere, int64 unless told
    mask:2x9[:bool]                  ones, but zeros at the last two positions of the second row (right padding)
    values:[[1, 2], [3, 4]][:int32]  these values
    anything else                    JSON, given to the model as it is: a number, a flag, null, a quoted text

In the file a list of numbers is short for `values:`. `NAME.0` is the first element of a list argument, `NAME.key` an
entry of a dictionary argument.

Needs: tests/scripts/requirements-cases.txt.
"""

import argparse
import importlib
import json
import math
import re
import shutil
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers.integrations import mxfp4
from transformers.pytorch_utils import Conv1D

# Elements kept of a large output. An odd step visits every column of a matrix whose width is a power of two.
OUTPUT_SAMPLES = 1024
LOGITS_SAMPLES = 2048
NEW_TOKENS = 8
# Models write a huge negative number, each its own, where attention or a choice is masked: it says nothing about size.
MASK_MAGNITUDE = 1e30
TRANSPOSED_CONVOLUTIONS = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)
# Center and scale of tensors that only their name tells apart.
FIXED_SPREADS = {
    "running_mean": (0.0, 0.125),
    "running_var": (1.0, 0.5),
    "cluster_size": (1.0, 0.25),
    "cluster_usage": (1.0, 0.25),
    "A_log": (0.5, 0.5),
    "D": (1.0, 0.25),
    # So large that some gates of experts are beyond their bounds.
    "gate_up_proj": (0.0, 1.0),
}
# Output fields that show how the answer came about. An engine may leave them out.
AUXILIARY = re.compile(
    r"(encoder|enc|init|initial|intermediate|static|pixel_decoder|transformer_decoder|auxiliary|generator|quantized)_.*"
    r"|(?!last_hidden_state$).*hidden_states?|.*(model_output|_outputs|_ngram|_perplexity)|fpn_.*"
    r"|(image|text|vision|multimodal)_output|projected_(latents|quantized_.*)|loc|scale|mask|ids_restore|rope_deltas"
    r"|extract_features|commit_loss|image_embeddings|doc_scores|loss_info"
)


# --- Numbers that follow from a name ---------------------------------------------------------------------------------


def random_bits(name, count, seed):
    """`count` words of 64 random bits: splitmix64, started at the FNV-1a hash of the name."""
    start = 0xCBF29CE484222325
    for byte in name.encode():
        start = (start ^ byte) * 0x100000001B3 % 2**64
    start = (start + seed * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) % 2**64
    words = np.arange(count, dtype=np.uint64) + np.uint64(start)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def uniform(name, shape, center, scale, seed):
    signed = (random_bits(name, math.prod(shape), seed) >> np.uint64(40)).astype(np.int64) - 2**23
    values = signed.astype(np.float32) * np.float32(2.0**-23 * scale)
    return (values + np.float32(center) if center else values).reshape(shape)


# --- Inputs ----------------------------------------------------------------------------------------------------------


def make_input(name, text, seed):
    """The row of case.json and the values of the input that `text` describes."""
    kind, _, rest = text.partition(":")
    if kind == "values":
        literal, _, dtype = rest.partition("]:")
        values = torch.tensor(json.loads(literal + "]" if dtype else literal)).numpy()
        values = values.astype(dtype or values.dtype)
        return {"name": name, "kind": "v", "dtype": str(values.dtype), "shape": list(values.shape)}, values
    size, *options = rest.split(":")
    shape = [int(length) for length in size.split("x")]
    if kind in ("u", "const"):
        center = float(options.pop(0)) if options else 0.5
        scale = 0.0 if kind == "const" else float(options.pop(0)) if options else 0.5
        dtype = options.pop(0) if options else "float32" if kind == "u" else "int64"
        if scale and math.frexp(scale)[0] != 0.5:
            raise SystemExit(f"input {name}: expected a power of two as scale, found {scale}")
        values = uniform("input:" + name, shape, center, scale, seed).astype(dtype)
        written = "F32" if dtype == "float32" else dtype
        return {"name": name, "kind": "u", "dtype": written, "shape": shape, "center": center, "scale": scale}, values
    if kind == "int":
        low, high = (int(end) for end in options.pop(0).split(".."))
        values = random_bits("input:" + name, math.prod(shape), seed) % np.uint64(high - low + 1)
        values = values.astype(np.int64).reshape(shape) + low
    else:
        values = np.ones(shape, np.int64)
        values[1:2, ..., -2:] = 0
    values = values.astype(options.pop(0) if options else "int64")
    return {"name": name, "kind": "v", "dtype": str(values.dtype), "shape": shape}, values


def read_inputs(arguments):
    """Rows of case.json, arrays by name, and the arguments that are no tensors."""
    described = json.loads(arguments.inputs.read_text()) if arguments.inputs else {}
    for item in arguments.input:
        name, _, text = item.partition("=")
        described[name] = text if re.match("(int|u|const|mask|values):", text) else json.loads(text)
    rows, arrays, scalars = [], {}, {}
    for name, value in described.items():
        if isinstance(value, list) and np.array(value).dtype.kind in "bif":
            value = "values:" + json.dumps(value)
        if isinstance(value, str) and re.match("(int|u|const|mask|values):", value):
            row, arrays[name] = make_input(name, value, arguments.seed)
            rows.append(row)
        else:
            scalars[name] = value
    return rows, arrays, scalars


def keyword_arguments(arrays, scalars, dtype):
    """What the model is called with: dotted names become lists and dictionaries, floats become `dtype`."""
    call = dict(scalars)
    for name, values in arrays.items():
        tensor = torch.from_numpy(values.copy())
        tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
        argument, _, key = name.partition(".")
        if not key:
            call[argument] = tensor
        elif key.isdigit():
            call.setdefault(argument, []).append(tensor)
        else:
            call.setdefault(argument, {})[key] = tensor
    return call


# --- Weights ---------------------------------------------------------------------------------------------------------


def power_of_two(fan_in):
    """The scale that keeps the size of what a matrix multiplies: sqrt(3 / fan_in), as a power of two."""
    return 2.0 ** round(math.log2(math.sqrt(3 / fan_in)))


def fan_in(shape, module):
    """How many products of these weights an output sums up."""
    if isinstance(module, TRANSPOSED_CONVOLUTIONS):
        return max(1, shape[0] // module.groups * math.prod(shape[2:]) // math.prod(module.stride))
    if isinstance(module, Conv1D):
        return shape[0]
    # A stack of matrices, such as that of a mixture's experts, has three dimensions.
    return shape[1] if len(shape) == 3 and not isinstance(module, torch.nn.Conv1d) else math.prod(shape[1:])


def center_and_scale(name, shape, module):
    """Around which number, and how far from it, the elements of a tensor lie: numbers that a trained model may have."""
    last, kind = name.rpartition(".")[2], type(module).__name__
    if last in FIXED_SPREADS:
        return FIXED_SPREADS[last]
    if (last == "weight" and kind.endswith("Embedding")) or (last.startswith("embed") and kind.endswith("Codebook")):
        return 0.0, 1.0
    if math.prod(shape) == 1:
        return (2.0, 0.5) if re.search("(logit|reg)_scale|temperature", last) else (0.5, 0.25)
    is_row = len(shape) == 1 or shape[0] == 1
    if last == "bias" or (is_row and re.search("(?<!^dt_)bias(?!.*table)", last)):
        return 0.0, 0.125
    if last == "original0" or (last == "weight" and (len(shape) == 1 or "Norm" in kind)):
        return 1.0, 0.25
    if len(shape) == 1 and re.search("^(layer_)?scale|gamma|lambda|gate|mix_factor|scalar|^alpha_", last):
        return 0.5, 0.25
    is_token = re.search("token|embed|probe|scale|table", last) or (len(shape) > 2 and shape[0] == 1)
    if len(shape) == 1 or (is_token and last != "weight"):
        return 0.0, 0.5
    # What a matrix multiplies keeps its size.
    return 0.0, 2.0 ** round(math.log2(math.sqrt(3 / fan_in(shape, module))))


def memory_name(name, shape, in_memory):
    """The name in memory of a checkpoint's tensor: the same, or, where the library renames, the likest."""

    def likeness(other):
        pairs = zip(reversed(name.split(".")), reversed(other.split(".")))
        return list(in_memory[other].shape) == shape, [left == right for left, right in pairs]

    return name if name in in_memory else max(in_memory, key=likeness)


def is_verbatim(name, values, module, parameter):
    """Whether a tensor is part of the architecture, such as an index, a flag or a table of sinusoids, not learned."""
    if not values.is_floating_point():
        return True
    layer = name.endswith((".weight", ".bias")) and not isinstance(module, torch.nn.Embedding)
    if parameter.requires_grad or layer or re.search("running_(mean|var)$", name):
        return False
    # A frozen parameter is a table, or, with one element, a weight; a buffer with one element is a flag.
    if isinstance(parameter, torch.nn.Parameter) or values.numel() == 1:
        return isinstance(parameter, torch.nn.Parameter) != (values.numel() == 1)
    # Zeros or ones are what training starts to gather from, and would test little.
    return values.unique().tolist() not in ([0.0], [1.0])


def weight_rows(stored, model, seed):
    """Rows of case.json, all weights, and those that do not follow from their name."""
    rows, weights, verbatim = [], {}, {}
    in_memory, modules = model.state_dict(keep_vars=True), dict(model.named_modules(remove_duplicate=False))
    for name, values in sorted(stored.items()):
        shape = list(values.shape)
        memory = memory_name(name, shape, in_memory)
        module = modules[memory.rpartition(".")[0]]
        if is_verbatim(name, values, module, in_memory[memory]):
            rows.append([name, shape, "v", 0.0, 0.0])
            weights[name] = verbatim[name] = values.numpy()
        else:
            center, scale = center_and_scale(name, shape, module)
            rows.append([name, shape, "u", center, scale])
            weights[name] = uniform(name, shape, center, scale, seed)
    return rows, weights, verbatim


def pack_experts(rows, weights, verbatim, seed):
    """Puts 4-bit floats in place of the experts of GPT-OSS, `[experts, inputs, outputs]`: their blocks and scales are
    stored, and the weights are what transformers makes of them."""
    packed_rows = []
    for name, shape, kind, center, scale in rows:
        if len(shape) != 3:
            packed_rows.append([name, shape, kind, center, scale])
            continue
        experts, inputs, outputs = shape
        for end, shape, least, count in [
            ("_blocks", [experts, outputs, inputs // 32, 16], 0, 256),
            ("_scales", [experts, outputs, inputs // 32], 122, 4),
        ]:
            numbers = random_bits(name + end, math.prod(shape), seed) % np.uint64(count) + np.uint64(least)
            verbatim[name + end] = numbers.astype(np.uint8).reshape(shape)
            packed_rows.append([name + end, shape, "v", 0.0, 0.0])
        packed = [torch.from_numpy(verbatim[name + end]) for end in ("_blocks", "_scales")]
        weights[name] = mxfp4.convert_moe_packed_tensors(*packed, dtype=torch.float32).numpy()
    return packed_rows


# --- The model -------------------------------------------------------------------------------------------------------


def model_class(path):
    """A class of transformers or diffusers by its name, or any class as `package.module.Class`."""
    module, _, name = path.rpartition(".")
    for library in [importlib.import_module(module)] if module else [transformers, diffusers]:
        if hasattr(library, name):
            return getattr(library, name)
    raise SystemExit(f"{path}: expected a class of transformers or diffusers; name another as package.module.Class")


def build(cls, config, seed):
    torch.manual_seed(seed)
    if issubclass(cls, diffusers.ModelMixin):
        return cls.from_config(config).eval()
    config = cls.config_class.from_dict(config)
    config._attn_implementation = "eager"
    return cls._from_config(config).eval()


def checkpoint(folder):
    """The one weights file that save_pretrained wrote, and its tensors."""
    (path,) = folder.glob("*.safetensors")
    with safe_open(path, "pt") as file:
        return path, {name: file.get_tensor(name) for name in file.keys()}


def load(cls, folder):
    """The model as a reader of the checkpoint gets it, and what the library says of names that it missed."""
    if issubclass(cls, diffusers.ModelMixin):
        model, names = cls.from_pretrained(folder, low_cpu_mem_usage=False, output_loading_info=True)
    else:
        model, names = cls.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    return model.eval(), {key: sorted(names[key]) for key in ("missing_keys", "unexpected_keys")}


# --- Outputs ---------------------------------------------------------------------------------------------------------


def tensors_in(value, name=""):
    """Every tensor of what a model returned, by the names of the fields that lead to it; caches and losses are not."""
    if isinstance(value, torch.Tensor):
        value = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
        yield name or "output", value.detach().numpy()
    elif isinstance(value, dict):
        for key, item in value.items():
            if not re.search("past_|cache|^(mems|state|loss)$", key):
                yield from tensors_in(item, f"{name}.{key}" if name else key)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from tensors_in(item, f"{name}.{index}" if name else f"output_{index}")


def forward(model, arrays, scalars, dtype, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        return dict(tensors_in(model.to(dtype)(**keyword_arguments(arrays, scalars, dtype))))


def is_answer(name):
    """Whether an output is a field, or an element of a list, that is not known as a state or a copy of one."""
    return re.fullmatch(r"\w+(\.\d+)*", name) and not AUXILIARY.fullmatch(name.partition(".")[0])


def primary_outputs(names, chosen):
    """The outputs that an engine must give: the answers, not the states that led to them."""
    if chosen:
        return {name for name in names if name in chosen or name.partition(".")[0] in chosen}
    answers = [name for name in names if is_answer(name)]
    heads = [name for name in answers if name not in ("last_hidden_state", "pooler_output")]
    if heads:
        answers = [name for name in answers if name != "last_hidden_state"]
    return set(answers or names[:1])


def sample_step(count, samples):
    """Every how manieth element of so many is kept, an odd number; all are where few more than the samples are."""
    return math.ceil(count / samples) | 1 if count > 3 * samples else 1


def output_row(name, values, exact, primary):
    """The row of case.json and the elements to store. `exact` is the output of the f64 run, if there was one."""
    row = {"name": name, "dtype": str(values.dtype), "shape": list(values.shape), "primary": primary}
    step = sample_step(values.size, OUTPUT_SAMPLES)
    plain = np.isfinite(values)
    if np.issubdtype(values.dtype, np.floating):
        plain &= np.abs(values) <= MASK_MAGNITUDE
        rms = math.sqrt(np.mean(np.square(values[plain], dtype=np.float64))) if plain.any() else 0.0
        error = None
        if exact is not None and exact.shape == values.shape:
            error = float(np.max(np.abs(values[plain] - exact[plain]), initial=0.0))
        tolerance = max(1e-4 * rms, 30 * (error or 0.0), 1e-6)
        row |= {"rms": rms, "err64": error, "atol": float(f"{tolerance:.3g}"), "rtol": 1e-3}
        if error and error > 0.01 * rms:
            row["unstable"] = True
    if step > 1:
        numbers = values[plain].astype(np.float64)
        row |= {"sample_step": step, "mean": float(numbers.mean()), "absmean": float(np.abs(numbers).mean())}
        values = values.reshape(-1)[::step]
    return row, values


# --- Generation ------------------------------------------------------------------------------------------------------


def generate(model, names, arrays, scalars, tolerance):
    """A greedy continuation that nothing but the logits decides: the row of case.json and the arrays to store."""
    call = keyword_arguments({name: arrays[name] for name in names if name in arrays}, {}, torch.float32)
    call |= {name: scalars[name] for name in names if name in scalars}
    if "attention_mask" in call:
        call["attention_mask"] = torch.ones_like(call["attention_mask"])
    special = {
        "pad_token_id": 0,
        "eos_token_id": None,
        "bos_token_id": model.generation_config.bos_token_id,
        "decoder_start_token_id": model.generation_config.decoder_start_token_id,
    }
    # Without a cache every step is a forward call of all tokens.
    use_cache = getattr(model.config, "use_cache", True)
    # Set on the model, because an argument's absent values would be taken from the model's own configuration.
    model.generation_config = transformers.GenerationConfig(
        max_new_tokens=NEW_TOKENS, use_cache=use_cache, output_logits=True, return_dict_in_generate=True, **special
    )
    with torch.no_grad():
        answer = model.generate(**call)
    logits = torch.stack(answer.logits, dim=1).float()
    best = logits.topk(2).values
    margins = (best[..., 0] - best[..., 1]).tolist()
    step = sample_step(logits.numel(), LOGITS_SAMPLES)
    row = {"max_new_tokens": NEW_TOKENS, **special, "inputs": sorted(names), "attention_mask": "ones"}
    row |= {"margins": [[float(f"{gap:.4g}") for gap in sequence] for sequence in margins]}
    row |= {"logits_shape": list(logits.shape), "logits_step": step, "atol": float(f"{tolerance:.4g}")}
    return row, {"gen.sequences": answer.sequences.numpy(), "gen.logits": logits.numpy().reshape(-1)[::step]}


# --- The case --------------------------------------------------------------------------------------------------------


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--class", dest="cls", required=True, help="name, or package.module.Class")
    parser.add_argument("--config", type=Path, required=True, help="config.json as the library writes it")
    parser.add_argument("--toggle", action="append", default=[], metavar="KEY=VALUE", help="change an option")
    parser.add_argument("--inputs", type=Path, help="JSON file of inputs")
    parser.add_argument("--input", action="append", default=[], metavar="NAME=VALUE", help="one input more")
    parser.add_argument("--primary", type=lambda text: text.split(","), help="outputs that are required; else guessed")
    parser.add_argument("--generate", type=lambda text: text.split(","), help="inputs to generate from")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the inputs")
    parser.add_argument("--mxfp4", action="store_true", help="experts of GPT-OSS as the 4-bit floats of its checkpoints")
    parser.add_argument("--model-type", help="first part of the case's name; else that of the configuration")
    parser.add_argument("--variant", default="a", help="last part of the case's name")
    parser.add_argument("--out", type=Path, required=True, help="folder of cases")
    return parser.parse_args()


def read_config(arguments):
    config, toggles = json.loads(arguments.config.read_text()), {}
    for item in arguments.toggle:
        key, _, text = item.partition("=")
        try:
            toggles[key] = json.loads(text)
        except json.JSONDecodeError:
            toggles[key] = text
        *sections, option = key.split(".")
        section = config
        for part in sections:
            section = section[part]
        section[option] = toggles[key]
    return config, toggles


def make_case(arguments, folder):
    """The case and the arrays to store; `folder` receives the checkpoint."""
    cls, (config, toggles) = model_class(arguments.cls), read_config(arguments)
    library = diffusers if issubclass(cls, diffusers.ModelMixin) else transformers
    input_rows, arrays, scalars = read_inputs(arguments)
    model = build(cls, config, arguments.seed)
    model.save_pretrained(folder)
    path, stored = checkpoint(folder)
    rows, weights, verbatim = weight_rows(stored, model, arguments.seed)
    if arguments.mxfp4:
        rows = pack_experts(rows, weights, verbatim, arguments.seed)
    save_file(weights, path, metadata={"format": "pt"})
    model, names = load(cls, folder)
    outputs = forward(model, arrays, scalars, torch.float32, arguments.seed)
    try:
        exact = forward(load(cls, folder)[0], arrays, scalars, torch.float64, arguments.seed)
    except (RuntimeError, TypeError, ValueError) as error:
        print(f"no f64 run, so tolerances follow from the size of the outputs alone: {error}")
        exact = {}
    tensors = {"in." + row["name"]: arrays[row["name"]] for row in input_rows if row["kind"] == "v"}
    tensors |= {"w." + name: values for name, values in verbatim.items()}
    primary, output_rows = primary_outputs(list(outputs), arguments.primary), []
    for name, values in outputs.items():
        row, tensors["out." + name] = output_row(name, values, exact.get(name), name in primary)
        output_rows.append(row)
    model_type = arguments.model_type or config.get("model_type") or "diffusers-" + cls.__name__.lower()
    case = {
        "format": 1,
        "case": f"{model_type}__{cls.__name__}__{arguments.variant}",
        "model_type": model_type,
        "class": cls.__name__,
        "module": cls.__module__,
        "library": library.__name__,
        "library_version": library.__version__,
        "entry": None,
        "variant": arguments.variant,
        "toggles": toggles,
        "seed": arguments.seed,
        "weight_seed": arguments.seed,
        "origin": "tests/scripts/make_case.py",
        "inputs": input_rows,
        "scalar_inputs": scalars,
        "outputs": output_rows,
        "unstable": [row["name"] for row in output_rows if row.get("unstable")],
        **names,
        "names_differ_from_memory": sorted(set(stored) - set(model.state_dict())),
        "n_params": sum(math.prod(shape) for _, shape, *_ in rows),
    }
    if arguments.generate:
        # Steps follow one another, each from what the step before left in the cache.
        tolerance = 2 * next(row["atol"] for row in output_rows if "atol" in row)
        case["generate"], generated = generate(model, arguments.generate, arrays, scalars, tolerance)
        tensors |= generated
    return case | {"tensors": rows}, tensors


def main():
    arguments = parse_arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        case, tensors = make_case(arguments, Path(folder))
        target = arguments.out / case["case"]
        target.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "generation_config.json"):
            if (Path(folder) / name).exists():
                shutil.copy(Path(folder) / name, target)
    if arguments.mxfp4:
        config = json.loads((target / "config.json").read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}
        (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (target / "case.json").write_text(json.dumps(case))
    save_file({name: np.array(values, order="C") for name, values in tensors.items()}, target / "io.safetensors")
    for row in case["outputs"]:
        print(f"{'primary' if row['primary'] else '       '} {row['name']} {row['shape']} rms {row.get('rms', 0):.3g}")
    print(target)


if __name__ == "__main__":
    main()
