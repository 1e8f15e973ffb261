"""Packing a step: every token finds its place, whatever was packed before."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.contract import SamplingParams
from backends.engine.input_batch import BlockTables, InputBatch
from backends.engine.request import Request, RequestStatus
from backends.engine.runner import ScheduledSequence

BLOCK = 4


def _request(tokens: int, blocks: list[int], first_token: int = 100) -> Request:
    prompt = list(range(first_token, first_token + tokens))
    request = Request("r", prompt, SamplingParams(), 10)
    request.block_ids = blocks
    return request


def _inputs(seats: int = 4) -> InputBatch:
    return InputBatch(
        block_size=BLOCK, max_num_seqs=seats, max_model_len=40, device=torch.device("cpu")
    )


def test_a_mixed_step_is_packed_in_order() -> None:
    """A decode, a chunk of a prompt, a verification: tokens, slots and logit rows of each."""
    decode = _request(6, [3, 1])
    chunk = _request(9, [7, 5], first_token=200)
    verify = _request(3, [2, 6], first_token=300)
    verify.draft_token_ids = [900, 901]
    batch, rows = _inputs().build(
        [
            ScheduledSequence(decode, 5, 1),
            ScheduledSequence(chunk, 2, 4),
            ScheduledSequence(verify, 2, 3, num_drafts=2),
        ]
    )
    assert batch.token_ids.tolist() == [105, 202, 203, 204, 205, 302, 900, 901]
    assert batch.positions.tolist() == [5, 2, 3, 4, 5, 2, 3, 4]
    assert batch.slot_mapping.tolist() == [5, 30, 31, 20, 21, 10, 11, 24]
    assert batch.query_start_lens.tolist() == [0, 1, 5, 8]
    assert batch.context_lens.tolist() == [6, 6, 5]
    assert batch.block_tables.tolist() == [[3, 1], [7, 5], [2, 6]]
    assert (batch.max_query_len, batch.max_context_len) == (4, 6)
    assert rows is not None
    assert rows.tolist() == [0, 5, 6, 7]


def test_a_step_of_single_tokens_needs_no_choice_of_rows() -> None:
    """When every packed row is sampled from, no gather is asked for."""
    parts = [ScheduledSequence(_request(n, [n]), n - 1, 1) for n in (1, 3)]
    batch, rows = _inputs().build(parts)
    assert rows is None
    assert batch.max_query_len == 1


def test_a_prompt_that_is_not_finished_is_not_sampled() -> None:
    """A step of nothing but an unfinished chunk asks for no logits."""
    _, rows = _inputs().build([ScheduledSequence(_request(8, [0, 1]), 0, 5)])
    assert rows is not None
    assert rows.tolist() == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["grow", "preempt", "finish", "start"]), max_size=60), st.data())
def test_block_tables_follow_every_sequence(events: list[str], data: st.DataObject) -> None:
    """After any history of growth, preemption and replacement each row holds the block ids."""
    tables = BlockTables(rows=2, columns=12)
    running: list[Request] = []
    number = iter(range(10_000))
    for event in events:
        if event == "start" or not running:
            running.append(_request(4, [next(number)]))
        request = data.draw(st.sampled_from(running))
        if event == "grow" and len(request.block_ids) < 12:
            request.block_ids.append(next(number))
        elif event == "preempt":
            request.block_ids = [next(number) for _ in request.block_ids]
            request.num_preemptions += 1
        elif event == "finish":
            request.status = RequestStatus.FINISHED
            running.remove(request)
        for other in running:
            row = tables.row(other)  # may replace the table
            assert tables.table[row, : len(other.block_ids)].tolist() == other.block_ids
    assert len({tables.row(request) for request in running}) == len(running)


def test_block_tables_reuse_rows_of_finished_sequences() -> None:
    """Any number of sequences, two at a time, never grow a table of two rows."""
    tables = BlockTables(rows=2, columns=3)
    for number in range(50):
        request = _request(4, [number])
        row = tables.row(request)
        assert tables.table[row, 0] == number
        request.status = RequestStatus.FINISHED
    assert tables.table.shape == (2, 3)
    assert np.count_nonzero(tables.table[:, 1:] != -1) == 0


def test_decode_steps_in_kept_tensors_are_those_packed_anew() -> None:
    """Sequences that decode, grow, lose their blocks or leave: inputs as if from nothing."""
    kept = _inputs()
    requests = [_request(3, [4]), _request(7, [2, 6]), _request(1, [9])]
    free = iter(range(20, 60))
    for step in range(12):
        if step == 5:
            requests[1].block_ids = [11, 12, 13]  # preempted, and computed again elsewhere
            requests[1].num_preemptions += 1
        if step == 8:
            del requests[0]
        parts = []
        for request in requests:
            start = len(request.token_ids) - 1
            if start >= len(request.block_ids) * BLOCK:
                request.block_ids.append(next(free))
            parts.append(ScheduledSequence(request, start, 1))
        ours, rows = kept.build(parts)
        theirs, chosen = _inputs()._pack(parts)
        assert rows is None
        assert chosen is None
        width = theirs.block_tables.shape[1]
        assert torch.equal(ours.block_tables[:, :width], theirs.block_tables)
        for name in ("token_ids", "positions", "slot_mapping", "query_start_lens", "context_lens"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
        assert ours[6:] == theirs[6:]
        for request in requests:
            request.token_ids.append(step)
