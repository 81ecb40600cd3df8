"""Checks ONNX models, named as arguments, by ONNX's own rules, with strict inference of shapes."""

import sys

import onnx

faults = []
for path in sys.argv[1:]:
    try:
        onnx.checker.check_model(path, full_check=True)
    except Exception as error:  # Whatever it says is what is wrong with the model.
        faults.append(f"{path}: {error}")
sys.exit("\n".join(faults) or None)
