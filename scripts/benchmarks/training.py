"""The Trainer against bare training steps and transformers' own example; and on two processes against one."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.material import PAIRS, bscans, median

BATCH_SIZE, BATCHES = 32, 8


def benchmark_training(data: Path | None, scratch: Path) -> dict:
    """The Trainer, with augmentation, against bare steps on tensors in memory and against transformers' own example.

    Bare steps as anybody writes them, and with the memory kept that the Trainer keeps too. The example reads the same
    B-scans from image files, in float32 as it does by itself and in bfloat16; where this machine learns slower in
    bfloat16, the Trainer uses float32.
    """
    from benchmarks import trainings
    from oct_hf.parallel import kept_memory
    from oct_hf.training.arguments import bf16_is_faster

    bf16, material = bf16_is_faster(), trainings.Material(bscans(data), BATCH_SIZE * BATCHES)
    files = material.write(scratch / "imagefolder")

    def bare_with_kept_memory() -> float:
        with kept_memory():
            return trainings.bare(material, BATCH_SIZE, bf16)

    pairs = [
        (
            trainings.bare(material, BATCH_SIZE, bf16),
            *trainings.ours(material, BATCH_SIZE, scratch / f"run{number}"),
            bare_with_kept_memory(),
            trainings.example(files, BATCH_SIZE, False, scratch / f"example{number}"),
            trainings.example(files, BATCH_SIZE, True, scratch / f"example{number}"),
        )
        for number in range(PAIRS)
    ]
    return {
        "image_size": trainings.IMAGE_SIZE,
        "batch_size": BATCH_SIZE,
        "bf16": bf16,
        "bare_images_per_s": median(p[0] for p in pairs),
        "trainer_images_per_s": median(p[1] for p in pairs),
        "bare_with_kept_memory_images_per_s": median(p[3] for p in pairs),
        "example_images_per_s": median(p[4] for p in pairs),
        "example_bf16_images_per_s": median(p[5] for p in pairs),
        "speed_ratio": median(p[1] / p[0] for p in pairs),
        "speed_ratio_with_kept_memory": median(p[1] / p[3] for p in pairs),
        "speed_ratio_to_example": median(p[1] / p[4] for p in pairs),
        "speed_ratio_to_example_bf16": median(p[1] / p[5] for p in pairs),
        "speed_ratios": [round(p[1] / p[0], 3) for p in pairs],
        "speed_ratios_to_example_bf16": [round(p[1] / p[5], 3) for p in pairs],
        "waiting_for_data_share": median(p[2] for p in pairs),
    }


def benchmark_processes(scratch: Path) -> dict:
    """A training on two processes of one thread and one core each, against one such process alone on half of a batch.

    The two share the machine's memory, so beside them stand two trainings that know nothing of each other: what is
    lost against those is lost by talking.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        sys.exit("processes: this machine has one core, so two processes would share it")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    half, found = BATCH_SIZE // 2, []
    for number in range(PAIRS):
        place = scratch / f"processes{number}"
        alone = _wait([_start([], half, place / "alone", cores[:1])])
        strangers = _wait([_start([], half, place / str(core), [core]) for core in cores])
        together = _wait([_start(torchrun, BATCH_SIZE, place / "together", cores)])
        found.append((alone, strangers, together))
    return {
        "batch_size": BATCH_SIZE,
        "one_process_images_per_s": median(alone for alone, _, _ in found),
        "two_processes_images_per_s": median(together for _, _, together in found),
        "share_of_ideal": median(together / (2 * alone) for alone, _, together in found),
        "share_of_two_that_do_not_talk": median(together / strangers for _, strangers, together in found),
        "shares_of_ideal": [round(together / (2 * alone), 3) for alone, _, together in found],
    }


def _start(launcher: list[str], batch_size: int, folder: Path, cores: list[int]) -> subprocess.Popen:
    """A training of `BATCHES` steps an epoch in processes of their own, which may use these cores."""
    command = [sys.executable, *launcher, __file__, str(batch_size), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # what a child inherits
    try:
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        os.sched_setaffinity(0, mine)


def _wait(processes: list[subprocess.Popen]) -> float:
    """Images/s of all together: what each printed last, added up."""
    printed = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, printed, strict=True):
        if process.returncode:
            sys.exit(f"processes: a training failed: {errors.strip().splitlines()[-1]}")
    return sum(float(out.strip().splitlines()[-1]) for out, _ in printed)


def _one_of_several(batch_size: int, folder: Path) -> None:
    """What each process that `_start` starts does; the first of them prints images/s of all that torchrun started."""
    from benchmarks import trainings

    rank = int(os.environ.get("LOCAL_RANK", 0))
    if "LOCAL_RANK" in os.environ:  # a core of its own
        os.sched_setaffinity(0, [sorted(os.sched_getaffinity(0))[rank]])
    speed, _ = trainings.ours(trainings.Material(bscans(None), batch_size * BATCHES), batch_size, folder)
    if rank == 0:
        print(speed)


if __name__ == "__main__":
    _one_of_several(int(sys.argv[1]), Path(sys.argv[2]))
