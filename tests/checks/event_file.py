"""event_file.py CORE_TEST VENV: the event file that core_test writes, read by TensorBoard's own reader.

VENV is a Python environment with tensorboard, made from PyPI if it is not there; exit 77 (skipped)
if that fails.
"""
import math
import os
import pathlib
import subprocess
import sys
import tempfile

from environment import python_with

REQUIREMENT = "tensorboard==2.21.0"


def check(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(directory)
    events.Reload()
    tags = events.Tags()["scalars"]
    assert tags == ["loss", "rate/lr", "t" * 200], tags
    loss = [(e.wall_time, e.step, e.value) for e in events.Scalars("loss")]
    assert loss[0] == (1235.0, 1, 2.5), loss
    assert loss[1][:2] == (1236.0, 300) and math.isnan(loss[1][2]), loss
    rate = events.Scalars("rate/lr")[0]
    assert abs(rate.value - 1e-3) < 1e-9, rate
    assert events.Scalars("t" * 200)[0].value == -math.inf
    # Control: the reader stops at the first wrong checksum.
    path = next(pathlib.Path(directory).iterdir())
    damaged = bytearray(path.read_bytes())
    damaged[-20] ^= 1
    path.write_bytes(damaged)
    events = EventAccumulator(directory)
    events.Reload()
    assert len(events.Scalars("loss")) == 1, "a damaged record was read"
    print("TensorBoard reads what we write")


def main():
    if sys.argv[1] == "--check":
        check(sys.argv[2])
        return
    python = python_with(pathlib.Path(sys.argv[2]), ["tensorboard"], [REQUIREMENT])
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([sys.argv[1], "--gtest_filter=EventsWriter.SpellsEventsAsProtocolBuffers"], check=True,
                       stdout=subprocess.DEVNULL, env=os.environ | {"TOROID_EVENTS_DIRECTORY": directory})
        sys.exit(subprocess.run([python, __file__, "--check", directory]).returncode)


if __name__ == "__main__":
    main()
