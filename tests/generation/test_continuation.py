from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toto.backbones.config import BackboneConfig, Gpt2Config, LlamaConfig, MambaConfig
from toto.generation.config import SamplingConfig
from toto.generation.continuation import continue_video, first_context_frame
from toto.generation.sampling import sample_codes, sequence_generators
from toto.model import AutoregressiveModel
from toto.sequence import IMAGE_START_ID, NUM_SPECIAL_IDS, VIDEO_START_ID
from toto.tokenizers.config import DvaeConfig

NUM_CODES = 10
CONFIG = SamplingConfig(temperature=0.8, top_k=6)


class HashModel:
    """Logits that depend on every id it reads and on its place; remembers what it read."""

    def __init__(self) -> None:
        self.read: list[Tensor] = []

    def new_cache(self, length: int) -> list[Tensor]:
        return []

    def next_logits(self, ids_BL: Tensor, cache: list[Tensor]) -> Tensor:
        cache.append(ids_BL)
        ids_BL = torch.cat(cache, dim=1)
        self.read.append(ids_BL)
        weights_L = torch.arange(1, ids_BL.shape[1] + 1, dtype=torch.float64)
        state_B1 = ((ids_BL + 1) * weights_L).sum(-1, keepdim=True)
        return torch.sin(state_B1 * torch.arange(1, NUM_CODES + NUM_SPECIAL_IDS + 1)) * 2


def naive_continuation(
    prompt_THW: Tensor, start_id: int, frames: int, context_frames: int, seed: int
) -> Tensor:
    """One sequence: a list of whole frames that loses its older half whenever it is full."""
    _, height, width = prompt_THW.shape
    model, generators = HashModel(), sequence_generators([seed])
    context: list[list[int]] = []
    video: list[list[int]] = []

    def make_room() -> None:
        if len(context) == context_frames:
            del context[: (context_frames + 1) // 2]

    for frame_HW in prompt_THW:
        make_room()
        context.append(frame_HW.flatten().tolist())
        video.append(context[-1])
    for _ in range(frames):
        make_room()
        context.append([])
        video.append(context[-1])
        for _ in range(height * width):
            codes = [code + NUM_SPECIAL_IDS for frame in context for code in frame]
            logits_BV = model.next_logits(torch.tensor([[start_id, *codes]]), [])
            context[-1].append(int(sample_codes(logits_BV, CONFIG, generators)))
    return torch.tensor(video).unflatten(1, (height, width))


def prompt(batch: int, frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(NUM_CODES, (batch, frames, 2, 3), generator=generator)


@pytest.mark.parametrize("context_frames", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("prompt_frames", [0, 2, 7])
def test_equals_the_naive_continuation(context_frames: int, prompt_frames: int) -> None:
    prompt_codes_BTHW = prompt(2, prompt_frames)
    codes_BTHW = continue_video(
        HashModel(),
        prompt_codes_BTHW,
        torch.tensor([False, True]),
        frames=6,
        context_frames=context_frames,
        sampling=CONFIG,
        seeds=[3, 4],
    )
    assert codes_BTHW.shape == (2, prompt_frames + 6, 2, 3)
    assert torch.equal(codes_BTHW[:, :prompt_frames], prompt_codes_BTHW)
    for row, (start_id, seed) in enumerate([(VIDEO_START_ID, 3), (IMAGE_START_ID, 4)]):
        expected = naive_continuation(prompt_codes_BTHW[row], start_id, 6, context_frames, seed)
        assert torch.equal(codes_BTHW[row], expected)


def test_the_model_never_reads_past_its_context() -> None:
    model = HashModel()
    continue_video(
        model,
        prompt(1, 3),
        torch.tensor([False]),
        frames=9,
        context_frames=4,
        sampling=CONFIG,
        seeds=[0],
    )
    lengths = [ids_BL.shape[1] for ids_BL in model.read]
    assert max(lengths) == 1 + 4 * 6 - 1
    assert all(ids_BL[0, 0] == VIDEO_START_ID for ids_BL in model.read)
    assert all((ids_BL[:, 1:] >= NUM_SPECIAL_IDS).all() for ids_BL in model.read)


def test_first_context_frame_of_a_context_of_4() -> None:
    assert [first_context_frame(frame, 4) for frame in range(10)] == [0, 0, 0, 0, 2, 2, 4, 4, 6, 6]


def test_a_seed_gives_the_same_video_in_any_batch() -> None:
    prompt_codes_BTHW = prompt(3, 2)

    def run(rows: list[int]) -> Tensor:
        return continue_video(
            HashModel(),
            prompt_codes_BTHW[rows],
            torch.zeros(len(rows), dtype=torch.bool),
            frames=4,
            context_frames=3,
            sampling=CONFIG,
            seeds=[100 + row for row in rows],
        )

    together = run([0, 1, 2])
    assert torch.equal(run([2, 0]), together[[2, 0]])
    assert torch.equal(run([1]), together[[1]])


def test_two_goes_see_the_same_contexts_as_one() -> None:
    def run(codes_BTHW: Tensor, frames: int) -> Tensor:
        return continue_video(
            HashModel(),
            codes_BTHW,
            torch.tensor([False]),
            frames=frames,
            context_frames=4,
            sampling=SamplingConfig(top_k=1),
            seeds=[0],
        )

    assert torch.equal(run(run(prompt(1, 2), 5), 4), run(prompt(1, 2), 9))


def test_progress_counts_the_frames_of_a_sequence() -> None:
    seen: list[tuple[int, int]] = []
    continue_video(
        HashModel(),
        prompt(2, 1),
        torch.tensor([False, False]),
        frames=2,
        context_frames=4,
        sampling=CONFIG,
        seeds=[0, 1],
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 2), (2, 2)]


def test_wrong_counts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"seeds \(1\) as many as sequences \(2\)"):
        continue_video(
            HashModel(),
            prompt(2, 1),
            torch.tensor([False, False]),
            frames=1,
            context_frames=4,
            sampling=CONFIG,
            seeds=[0],
        )
    with pytest.raises(ValueError, match=r"context_frames \(0\) must be 1 or more"):
        continue_video(
            HashModel(),
            prompt(1, 1),
            torch.tensor([False]),
            frames=1,
            context_frames=0,
            sampling=CONFIG,
            seeds=[0],
        )


def test_continues_with_the_real_model() -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(
        DvaeConfig(num_codes=NUM_CODES), LlamaConfig.model_validate({"preset": "tiny"})
    ).eval()
    codes_BTHW = continue_video(
        model,
        prompt(2, 2),
        torch.tensor([False, True]),
        frames=3,
        context_frames=3,
        sampling=SamplingConfig(),
        seeds=[0, 1],
    )
    assert codes_BTHW.shape == (2, 5, 2, 3)
    assert codes_BTHW.min() >= 0
    assert codes_BTHW.max() < NUM_CODES


def test_mamba_carries_its_state_past_any_context() -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(
        DvaeConfig(num_codes=NUM_CODES), MambaConfig(width=16, num_layers=2, state_size=4)
    ).eval()
    for parameter in model.parameters():  # larger than at the start: the past must matter
        parameter.data += 0.1 * torch.randn_like(parameter)
    prompt_codes_BTHW, is_image_B = prompt(2, 3), torch.tensor([False, True])
    codes_BTHW = continue_video(
        model,
        prompt_codes_BTHW,
        is_image_B,
        frames=5,
        context_frames=None,
        sampling=CONFIG,
        seeds=[3, 4],
    )
    start_B1 = torch.tensor([[VIDEO_START_ID], [IMAGE_START_ID]])
    ids_BL = torch.cat([start_B1, prompt_codes_BTHW.flatten(1) + NUM_SPECIAL_IDS], dim=1)
    generators = sequence_generators([3, 4])
    for _ in range(5 * 6):  # each id from a pass over all that came before
        with torch.no_grad():
            last_BD = model.backbone(model.interface.embed_ids(ids_BL))[:, -1]
        code_B = sample_codes(model.interface.logits(last_BD), CONFIG, generators)
        ids_BL = torch.cat([ids_BL, code_B[:, None] + NUM_SPECIAL_IDS], dim=1)
    assert torch.equal(codes_BTHW.flatten(1), ids_BL[:, 1:] - NUM_SPECIAL_IDS)


@pytest.mark.parametrize(
    "backbone",
    [
        LlamaConfig(width=32, num_layers=2, num_heads=2, ffn_dim=48),
        Gpt2Config(width=32, num_layers=2, num_heads=2, ffn_dim=48),
        MambaConfig(width=16, num_layers=2, state_size=4),
    ],
    ids=["llama", "gpt2", "mamba"],
)
def test_a_seed_gives_the_same_video_in_any_batch_of_the_real_model(
    backbone: BackboneConfig,
) -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(DvaeConfig(num_codes=NUM_CODES), backbone).eval()
    for parameter in model.parameters():  # larger than at the start: what was read must matter
        parameter.data += 0.1 * torch.randn_like(parameter)
    prompt_codes_BTHW, is_image_B = prompt(3, 2), torch.tensor([False, True, False])

    def run(rows: list[int]) -> Tensor:
        return continue_video(
            model,
            prompt_codes_BTHW[rows],
            is_image_B[rows],
            frames=4,
            context_frames=None if backbone.unbounded_context else 3,
            sampling=SamplingConfig(top_p=0.95),
            seeds=[100 + row for row in rows],
        )

    together = run([0, 1, 2])
    assert len({tuple(row) for row in together[:, 2:].flatten(1).tolist()}) == 3
    for row in range(3):
        assert torch.equal(run([row]), together[[row]])
    assert torch.equal(run([2, 0]), together[[2, 0]])
