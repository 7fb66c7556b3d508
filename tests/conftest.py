import os
import signal

import torch
from hypothesis import settings

# A busy machine is no failure; and the gate should judge a change, not the luck of its draw.  It has ten minutes.
IN_GATE = bool(os.environ.get("CI"))
settings.register_profile("house", deadline=None, derandomize=IN_GATE, max_examples=20 if IN_GATE else 100)
settings.load_profile("house")

# A shell has what it starts in the background ignore Ctrl-C, as nohup does a closed terminal; whatever tests start
# would inherit that, and not end where it is asked to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# No test trains what it did not ask for, nor do the servers that tests start; those of the example say otherwise.
os.environ["EMACORE_EXAMPLE"] = "0"

# Some libraries bring torchvision, whose operators do not load beside a CPU build of torch; with their names declared
# it can be imported all the same, and nothing here calls them.
for operator in ("nms", "qnms"):
    torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
