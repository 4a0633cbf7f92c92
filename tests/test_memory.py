"""Training reuses its memory."""

import platform
import resource

import pytest

from dfx.tasks.memory import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_memory_serves_the_next_step_without_a_new_page():
    keep_freed_memory()
    bytearray(1 << 26)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(1 << 26)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 100  # of 16 384
