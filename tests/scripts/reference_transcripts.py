#!/usr/bin/env python3
"""Write what a Whisper model should say of a sound, computed in f32 by transformers' pipeline.

    python3 tests/scripts/reference_transcripts.py whisper/ tests/data/swarm.wav tests/data/whisper-tiny-en.transcripts.json

The sound was made by espeak-ng 1.51:

    espeak-ng -v en-us -s 165 -w tests/data/swarm.wav "A swarm of small machines can do what a large one does."

It is heard as it is, and again and again with silence between, longer than one window: then as
`return_timestamps=True` has it. Needs: tests/scripts/requirements-cases.txt.
"""

import json
import sys
import wave
from pathlib import Path

import numpy as np
import torch
import transformers
from speech_cases import RATE, resampled

# Times that the sound is there, and seconds of silence after each.
TIMES, SILENCE = 8, 1


def main():
    folder, sound, target = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    with wave.open(str(sound)) as file:
        assert file.getnchannels() == 1 and file.getsampwidth() == 2
        rate, data = file.getframerate(), file.readframes(file.getnframes())
    samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768
    again = np.tile(np.concatenate([samples, np.zeros(SILENCE * rate, np.float32)]), TIMES)
    pipe = transformers.pipeline("automatic-speech-recognition", str(folder), dtype=torch.float32, device="cpu")
    said, generate = [], pipe.model.generate
    pipe.model.generate = lambda **arguments: said.append(generate(**arguments)) or said[-1]
    rows = []
    for times, heard in ((1, samples), (TIMES, again)):
        found = pipe({"raw": resampled(heard, rate), "sampling_rate": RATE}, return_timestamps=times > 1)
        tokens = [token for token in said[-1][0].tolist() if token != pipe.tokenizer.eos_token_id]
        rows.append({"times": times, "silence_s": SILENCE, "tokens": tokens, "text": found["text"]})
    target.write_text(json.dumps({"transformers": transformers.__version__, "torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
