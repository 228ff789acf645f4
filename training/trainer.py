"""The loop that all stages share: optimiser, learning rate, moving average, checkpoints, log."""
import os
import time

import torch

from muon import Both

MUON_RATE = 0.01


class Trainer:
    """Trains `modules` (name -> network) until `minutes` of this stage, or `steps`, are used up.

    The learning rate follows the share of the budget that is used: a short rise, a plateau, and a fall to 2 % over the
    last third. The plateau makes it possible to stop, look, export and go on. Everything is written to
    `<work>/<name>.pt` every few minutes and at the end; the same command goes on from there.
    """

    SAVE_EVERY = 180    # seconds
    LONGEST_STEP = 20   # seconds; more than that is a process that was paused, which must not use up the budget

    def __init__(self, options, name, modules, lr, ema=0.999, weight_decay=0.01, warmup=200, muon=False):
        self.options, self.name, self.modules = options, name, modules
        self.lr, self.ema_decay, self.warmup = lr * options.lr_scale, ema, warmup
        self.path = options.work / f"{name}.pt"
        self.step, self.seconds = 0, 0.0
        self.params = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        self.optimizer = Both(modules, self.lr, weight_decay, MUON_RATE * options.lr_scale if muon else None)
        state = torch.load(self.path, map_location="cpu") if self.path.exists() else None
        if state:
            for key, module in modules.items():
                module.load_state_dict(state["modules"][key])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]
        source = state["ema"] if state else {k: m.state_dict() for k, m in modules.items()}
        self.ema = {k: {n: t.detach().clone().to(options.device) for n, t in s.items()} for k, s in source.items()}
        count = sum(p.numel() for p in self.params)
        print(f"{name}: {count / 1e6:.2f} M parameters, from step {self.step}", flush=True)

    @property
    def progress(self):
        o = self.options
        return self.step / o.steps if o.steps else self.seconds / (60 * o.minutes[self.name])

    def rate(self):
        rise = min(1.0, (self.step + 1) / self.warmup)
        fall = min(1.0, max(0.0, (1 - self.progress) / 0.34))
        return rise * max(0.02, fall)

    def average(self):
        """Moves the averaged weights; early on with a short memory, so that they do not lag behind."""
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.averaged, self.current, 1 - decay)

    def save(self):
        state = {"modules": {k: m.state_dict() for k, m in self.modules.items()}, "ema": self.ema,
                 "optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": self.seconds}
        new = self.path.with_suffix(".new")
        torch.save(state, new)
        os.replace(new, self.path)   # a kill while writing leaves the old checkpoint

    def run(self, loss_of, every=100):
        """`loss_of(step)` gives the loss and figures to log. Returns whether the budget is used up."""
        o = self.options
        pairs = [(self.ema[k][n], t) for k, m in self.modules.items() for n, t in m.state_dict().items()
                 if t.is_floating_point()]
        self.averaged, self.current = [a for a, _ in pairs], [b for _, b in pairs]
        torch.manual_seed(o.seed + self.step)
        begin, last_save, log = time.monotonic(), time.monotonic(), []
        device = o.device.split(":")[0]
        while self.progress < 1:
            now = time.monotonic()
            if o.stop_after and now - begin > 60 * o.stop_after:
                break
            self.optimizer.set_rate(self.rate())
            with torch.autocast(device, dtype=torch.bfloat16, enabled=not o.float32):
                loss, figures = loss_of(self.step)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.params, 1.0)
            if device != "cpu" or norm.isfinite():   # one overflow must not spoil the weights and their average
                self.optimizer.step()
                self.average()
            else:
                print(f"{self.name}: step {self.step} left out, its gradient is not finite", flush=True)
            self.optimizer.zero_grad()
            self.step += 1
            log.append({"loss": loss.detach(), **figures})
            if self.step % every == 0:
                self.report(log)
                log = []
            if time.monotonic() - last_save > self.SAVE_EVERY:
                self.save()
                last_save = time.monotonic()
            self.seconds += min(time.monotonic() - now, self.LONGEST_STEP)
        self.save()
        done = self.progress >= 1
        print(f"{self.name}: {'done' if done else 'stopped'} at step {self.step}, {self.seconds:.0f} s", flush=True)
        return done

    def report(self, log):
        # Some figures are of some pictures only, and nan where a batch has none.
        means = {k: torch.stack([f[k].float() for f in log]).nanmean().item() for k in log[0]}
        means["loss"] = torch.stack([f["loss"] for f in log]).mean().item()
        figures = " ".join(f"{k} {v:.4f}" for k, v in means.items())
        print(f"{time.strftime('%H:%M:%S')} {self.name} {self.step} {100 * self.progress:.1f} % {figures} "
              f"rate {self.rate():.2f} {self.seconds:.0f} s", flush=True)


def load_averaged(work, name, device, **modules):
    """The averaged weights of a stage, ready for use."""
    state = torch.load(work / f"{name}.pt", map_location="cpu")
    for key, module in modules.items():
        module.load_state_dict(state["ema"][key])
        module.to(device).eval().requires_grad_(False)


def mean_of(values, chosen):
    """Mean over the chosen ones; nan, which the log skips, if there is none."""
    return (values * chosen).sum() / chosen.sum()
