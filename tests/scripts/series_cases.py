"""Cases of time series for make_task_cases.py. There is no pipeline for them: the model's class answers.

Where a model tells distributions, the expected numbers are the means of what `distribution_output` makes of them.
"""

import numpy as np
import torch


def series(length, channels, shift):
    """Waves over a rising line, each channel at its own pace and height."""
    times, number = np.mgrid[0:length, 0:channels]
    values = np.sin(times / (2 + number) + shift) * (1 + 3 * number) + times * 0.25 - 5 * number + shift
    return values.astype(np.float32)


def forecasting(model):
    config = model.config
    length, channels = config.context_length, config.num_input_channels
    # The last series stands still in its first channel.
    shifts = [0, 2, 40]
    for shift in shifts:
        past = series(length, channels, shift)
        if shift == shifts[-1]:
            past[:, 0] = 3
        with torch.no_grad():
            found = model(past_values=torch.from_numpy(past)[None])
        values = found.prediction_outputs
        if model.distribution_output is not None:
            # PatchTSMixer's forward has added the scale to the logits of counts already.
            counts = config.model_type == "patchtsmixer" and config.distribution_output == "negative_binomial"
            scale = {} if counts else {"loc": found.loc, "scale": found.scale}
            values = model.distribution_output.distribution(values, **scale).mean
        values = values[0].numpy()
        features = {"shape": list(values.shape), "values": [float(value) for value in values.flatten()]}
        yield {"series": past.tolist()}, {}, [{"features": features}]


def patchtst(**more):
    size = {"num_input_channels": 3, "context_length": 24, "prediction_length": 7, "patch_length": 6, "patch_stride": 4}
    return size | {"d_model": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "ffn_dim": 24} | more


def patchtsmixer(**more):
    size = {"num_input_channels": 3, "context_length": 24, "prediction_length": 5, "patch_length": 6, "patch_stride": 6}
    return size | {"d_model": 12, "num_layers": 2} | more


TASK = "time-series-forecasting"
CASES = {
    "time-series": (
        TASK, "PatchTSTForPrediction", patchtst(use_cls_token=False), lambda: None, forecasting, {},
    ),
    "time-series-student": (
        TASK, "PatchTSTForPrediction", patchtst(loss="nll", distribution_output="student_t", scaling="mean"),
        lambda: None, forecasting, {},
    ),
    "time-series-counts": (
        TASK, "PatchTSTForPrediction", patchtst(loss="nll", distribution_output="negative_binomial"),
        lambda: None, forecasting, {},
    ),
    "time-series-mixer": (
        TASK, "PatchTSMixerForPrediction",
        patchtsmixer(mode="mix_channel", prediction_channel_indices=[2, 0], self_attn=True), lambda: None, forecasting, {},
    ),
    "time-series-mixer-normal": (
        TASK, "PatchTSMixerForPrediction", patchtsmixer(loss="nll", distribution_output="normal", scaling="mean"),
        lambda: None, forecasting, {},
    ),
    "time-series-mixer-counts": (
        TASK, "PatchTSMixerForPrediction", patchtsmixer(loss="nll", distribution_output="negative_binomial"),
        lambda: None, forecasting, {},
    ),
}  # fmt: skip
