"""Means by position against plain ones."""

from __future__ import annotations

import math

import pytest
import torch

from toto.analysis.token_loss import baseline_positions, mean_by_position


@pytest.mark.parametrize("sizes", [[12], [1, 4, 7], [6, 6]])
def test_means_and_margins_are_those_of_all_sequences_at_once(sizes):
    # Far from zero beside its spread: a sum of squares would cancel.
    losses_BTHW = 1e6 + torch.rand(12, 3, 2, 2, dtype=torch.float64)
    found = mean_by_position(losses_BTHW.split(sizes))
    assert found.sequences == 12
    torch.testing.assert_close(found.mean_THW, losses_BTHW.mean(0))
    plain_THW = 1.959963984540054 * losses_BTHW.std(0) / math.sqrt(12)
    torch.testing.assert_close(found.margin_THW, plain_THW)
    assert found.by_frame() == pytest.approx(losses_BTHW.mean((0, 2, 3)).tolist())
    assert found.first_of_frames() == pytest.approx(losses_BTHW[:, :, 0, 0].mean(0).tolist())


def test_positions_that_were_given_have_no_mean():
    losses_BTHW = torch.ones(3, 2, 1, 2)
    losses_BTHW[:, 0] = math.nan
    found = mean_by_position([losses_BTHW])
    assert found.mean_THW[0].isnan().all()
    assert found.by_frame()[1] == 1.0


def test_one_sequence_has_a_mean_without_a_margin_and_none_is_an_error():
    found = mean_by_position([torch.ones(1, 1, 1, 2)])
    assert found.mean_THW.tolist() == [[[1.0, 1.0]]]
    assert found.margin_THW.isnan().all()
    with pytest.raises(ValueError, match="at least one sequence"):
        mean_by_position([])


def test_copying_knows_a_still_video_after_its_first_frame():
    still_BTHW = torch.randint(16, (8, 1, 3, 3), dtype=torch.int32).expand(-1, 4, -1, -1)
    fitted, positions = baseline_positions([still_BTHW[:4], still_BTHW[4:]], 16)
    assert fitted.copy_probability > 0.99
    copy, unigram = positions["copy"].by_frame(), positions["unigram"].by_frame()
    assert copy[0] == pytest.approx(unigram[0])
    assert max(copy[1:]) < 0.1 < min(unigram)
