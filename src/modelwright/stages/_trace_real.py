"""What `_trace` is held against: the same two steps on real tensors, and what they ask of c10's allocator.

Truth is torch's profiler, which hears of every allocation and its end (`profile_memory`; c10/core/CPUAllocator.cpp,
`ProfiledCPUMemoryReporter`), inside operations too.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from modelwright.stages._trace import Job, prepared, steps
from modelwright.stages._trace_open import opened


def allocated(job: Job) -> int:
    """Most bytes of tensors at once, on the processor; the model's weights are random."""
    import gc

    from torch.profiler import ProfilerActivity, profile

    gc.collect()  # what an earlier model left would be let go in between, and be told of
    with TemporaryDirectory() as folder:
        words, rows = prepared(job, Path(folder))
        model = opened(job.stage, job.config, words, job.seed)
        storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in [*model.parameters(), *model.buffers()]}
        live = most = int(sum(storage.nbytes() for storage in storages.values()))
        del storages
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            steps(job, model, rows, Path(folder))
    results = profiler.profiler.kineto_results if profiler.profiler is not None else None
    assert results is not None, "the profiler has ended"
    told = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    for _, size in told:
        live += int(size)
        most = max(most, live)
    return most
