"""Freed memory is kept: page faults of repeated allocations."""

import os
import subprocess
import sys

import pytest
from conftest import small_config

from retinanet_plugin.acceleration.memory import keep_freed_memory

FAULTS = """
import resource, torch
from conftest import small_config
from retinanet_plugin.acceleration.memory import keep_freed_memory

for keep in (False, True):
    print(keep_freed_memory(small_config("MODEL.ACCELERATION.KEEP_FREED_MEMORY", keep)))
    faults = []
    for _ in range(10):  # the first few need new pages
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(3):
            torch.ones(16_000_000)  # 64 MB: more than the C library would keep by itself
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print(min(faults))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_page_faults() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FAULTS]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    off, faults_off, on, faults_on = result.stdout.split()
    assert off == "False"
    if on == "False":
        pytest.skip("not the GNU C library")
    # Three blocks are 192 MB: at least 96 pages, of 2 MB.
    assert int(faults_off) >= 90 and int(faults_on) < 50


def test_other_devices_have_their_own_allocator() -> None:
    assert not keep_freed_memory(small_config("MODEL.DEVICE", "cuda"))
