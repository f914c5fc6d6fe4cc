"""What test_processes.py starts with torchrun: a small training, stopped in the middle of its second epoch."""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_processes import small_trainer

from oct_hf.training import processes
from oct_hf.training.callbacks import StopOnSignal


class StopTheSecondProcess(StopOnSignal):
    """A signal that only one process hears."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4 and not processes.is_main():
            self.stopped = 15
        super().on_step_end(args, state, control, **kwargs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    processes.join()
    seen = []
    stop = StopTheSecondProcess()
    run = small_trainer(Path(sys.argv[1]) / "checkpoints", [stop], seen.append)
    run.train()
    said = {"stopped": stop.stopped, "step": run.state.global_step, "evaluated": seen, "log": run.state.log_history}
    found = processes.from_main(lambda: "of the first")
    (Path(sys.argv[1]) / f"{run.args.process_index}.json").write_text(json.dumps(said | {"told": found}))
    processes.wait()
    processes.leave()
