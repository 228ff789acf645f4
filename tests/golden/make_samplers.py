#!/usr/bin/env python3
"""Makes the reference data for samplers without noise with the original library.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make_samplers.py

Each sampler is made from one scheduler's file, as users of the original choose it, and takes steps on states and outputs that
do not depend on each other. Written beside this file: samplers.safetensors with the tensors

    config                          the JSON of the scheduler
    x, outputs                      the first state, standard normal, and what the model says at each call
    SAMPLER/PREDICTION/STEPS/timesteps    of all calls of the model
    SAMPLER/PREDICTION/STEPS/states       what the model sees at each call, and the last state behind them
"""

import json
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file

CONFIG = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
SAMPLERS = {
    "pndm": diffusers.PNDMScheduler,
    "ddim": diffusers.DDIMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "dpm++": diffusers.DPMSolverMultistepScheduler,
}
STEPS = [1, 2, 7, 20]


def main():
    torch.manual_seed(0)
    x, outputs = torch.randn(24), torch.randn(max(STEPS) + 1, 24)
    text = json.dumps(CONFIG)
    tensors = {"x": x, "outputs": outputs, "config": torch.tensor(list(text.encode()), dtype=torch.uint8)}
    for name, sampler in SAMPLERS.items():
        for prediction in ["v_prediction", "epsilon"]:
            for steps in STEPS:
                scheduler = sampler.from_config(CONFIG | {"prediction_type": prediction})
                scheduler.set_timesteps(steps)
                state, states = x * scheduler.init_noise_sigma, []
                for call, t in enumerate(scheduler.timesteps):
                    states.append(scheduler.scale_model_input(state, t))
                    state = scheduler.step(outputs[call], t, state).prev_sample
                states.append(state)
                key = f"{name}/{prediction}/{steps}"
                tensors[f"{key}/timesteps"] = scheduler.timesteps.float()
                tensors[f"{key}/states"] = torch.stack(states)
    save_file({key: value.contiguous() for key, value in tensors.items()}, Path(__file__).parent / "samplers.safetensors")


if __name__ == "__main__":
    main()
