"""toto analyze, as a user types it."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter

import numpy as np
import pytest
from command_line import toto, write_recipe
from PIL import Image
from tiny_runs import tiny_recipe

from toto.data.index import Dataset
from toto.data.manifest import TokenInfo
from toto.data.shards import DatasetWriter
from toto.jobs import ngrams


def write_tokens(folder, codes_NTHW, *, tokenizer=None):
    """A token dataset of N videos of T frames; pictures where T is 1."""
    height, width = codes_NTHW.shape[2:]
    tokenizer = tokenizer or {"name": "dvae", "num_codes": 32, "weights": "random:0"}
    info = TokenInfo(
        tokenizer=tokenizer, fingerprint="f" * 64, resolution=8 * height, grid=(height, width)
    )
    kind = "images" if codes_NTHW.shape[1] == 1 else "videos"
    with DatasetWriter(
        folder, kind=kind, form="tokens", tokens=info, max_shard_samples=3
    ) as writer:
        for number, codes_THW in enumerate(codes_NTHW):
            file = io.BytesIO()
            np.save(file, codes_THW.astype("<u2"))
            writer.add(
                f"{number}", "npy", file.getvalue(), origin=f"{number}", frames=len(codes_THW)
            )


def random_codes(*shape, seed=0):
    return (np.random.default_rng(seed).random(shape) ** 2 * 32).astype(np.uint16)


def analyze(folder, *arguments, code=0):
    return toto("analyze", "ngrams", *arguments, "--out", "out", cwd=folder, code=code)


def results(folder):
    return json.loads((folder / "out/ngrams.json").read_text())["datasets"]


def plainly(n, codes_BL):
    return Counter(
        tuple(image[first : first + n])
        for image in codes_BL.tolist()
        for first in range(len(image) - n + 1)
    )


@pytest.mark.parametrize("chunk", [1, 50, 10**6])
def test_every_frame_is_an_image_whatever_the_chunks(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(ngrams, "CHUNK_TOKENS", chunk)
    codes_NTHW = random_codes(7, 4, 2, 3)
    write_tokens(tmp_path / "tokens", codes_NTHW)
    done = analyze(tmp_path, "tokens")
    found = results(tmp_path)["tokens"]
    assert (found["images"], found["of_images"], found["codebook_size"]) == (28, 28, 32)
    rows = list(csv.DictReader((tmp_path / "out/ngrams.csv").open()))
    for n, one in zip((1, 2, 3), found["ngrams"], strict=True):
        counts = plainly(n, codes_NTHW.reshape(28, 6))
        assert (one["n"], one["windows"]) == (n, 28 * (7 - n))
        assert (one["distinct"], one["possible"]) == (len(counts), 32**n)
        assert one["most"] == max(counts.values())
        p = np.array(list(counts.values())) / counts.total()
        assert one["entropy_nats"] == pytest.approx(-(p * np.log(p)).sum())
        assert one["coverage"]["10"] == pytest.approx(np.sort(p)[-10:].sum())
        of_n = [row for row in rows if row["n"] == str(n)]
        histogram = {int(row["occurrences"]): int(row["ngrams"]) for row in of_n}
        assert histogram == Counter(counts.values())
        assert f"{len(counts):,}" in done.stdout
    with Image.open(tmp_path / "out/ngrams.png") as figure:
        assert figure.width > 3 * 500


def test_datasets_stand_beside_each_other_and_are_replaced(tmp_path):
    for number, folder in enumerate(("a/tokens", "b/tokens")):
        (tmp_path / folder).parent.mkdir()
        write_tokens(tmp_path / folder, random_codes(5, 1, 2, 2, seed=number))
    done = analyze(tmp_path, "a/tokens", "b/tokens", code=2)
    assert "two are called 'tokens'. Tell them apart with a --label each" in done.stderr
    assert not (tmp_path / "out").exists()
    analyze(tmp_path, "a/tokens", "b/tokens", "--label", "a", "--label", "b, again")
    assert list(results(tmp_path)) == ["a", "b, again"]
    analyze(tmp_path, "b/tokens")
    assert list(results(tmp_path)) == ["tokens"]


def test_some_images_are_spread_over_the_dataset(tmp_path):
    codes_NTHW = np.arange(6, dtype=np.uint16)[:, None, None, None].repeat(4, axis=3)
    write_tokens(tmp_path / "tokens", codes_NTHW)
    analyze(tmp_path, "tokens", "--images", "2")
    found = results(tmp_path)["tokens"]
    assert (found["images"], found["of_images"]) == (2, 6)
    assert [one["windows"] for one in found["ngrams"]] == [8, 6, 4]
    assert [one["distinct"] for one in found["ngrams"]] == [2, 2, 2]
    analyze(tmp_path, "tokens", "--images", "100")
    assert results(tmp_path)["tokens"]["images"] == 6


def test_excluded_samples_are_not_counted(tmp_path):
    write_tokens(tmp_path / "tokens", random_codes(5, 1, 2, 2))
    (tmp_path / "tokens/excluded.jsonl").write_text('{"sample": 1}\n')
    analyze(tmp_path, "tokens")
    assert results(tmp_path)["tokens"]["images"] == 4


def test_what_toto_tokenizes_is_counted(tmp_path, tiny_datasets):
    recipe = write_recipe(tmp_path, tiny_recipe(tiny_datasets))
    toto("tokenize", tiny_datasets / "videos-val", "codes", "--recipe", recipe, cwd=tmp_path)
    analyze(tmp_path, "codes")
    dataset = Dataset.open(tmp_path / "codes")
    codes_BL = np.concatenate([dataset.read_codes(i, 0, 12, 1) for i in range(6)]).reshape(72, 16)
    assert results(tmp_path)["codes"]["ngrams"][2]["distinct"] == len(plainly(3, codes_BL))


def test_mistakes_are_answered_with_the_mend(tmp_path, tiny_datasets):
    done = analyze(tmp_path, tiny_datasets / "pictures", code=2)
    assert "pictures holds images, and n-grams are of tokens. Tokenize it: toto tokenize" in (
        done.stderr
    )
    write_tokens(tmp_path / "small", random_codes(2, 1, 1, 2))
    done = analyze(tmp_path, "small", code=2)
    assert "images of 1 × 2 tokens have no 3-grams" in done.stderr
    write_tokens(tmp_path / "beyond", random_codes(2, 1, 2, 2) + 40)
    done = analyze(tmp_path, "beyond", code=2)
    assert "its tokenizer has codes from 0 to 31. Tokenize it again" in done.stderr
    done = analyze(tmp_path, "missing", code=2)
    assert "no dataset at missing" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_plugin_of_tokens_is_imported_by_the_user(tmp_path, request):
    write_tokens(tmp_path / "tokens", random_codes(2, 1, 2, 2) % 16, tokenizer={"name": "grey"})
    done = analyze(tmp_path, "tokens", code=2)
    assert "unknown tokenizer 'grey'" in done.stderr
    analyze(tmp_path, "tokens", "--import", request.path.parents[1] / "plugins/parts.py")
    assert results(tmp_path)["tokens"]["codebook_size"] == 16


def test_coordinates_are_measured_and_drawn(tmp_path):
    backbone = "{name: llama, width: 16, num_layers: 1, num_heads: 2, ffn_dim: 32}"
    command = ["analyze", "coordinates", backbone, "--out", "mup", "--steps", "1"]
    done = toto(*command, "--widths", "16,32", cwd=tmp_path)
    assert "with µP" in done.stdout
    record = json.loads((tmp_path / "mup/coordinates.json").read_text())
    assert set(record["mean_size"]) == {"without µP", "with µP"}
    assert len(record["mean_size"]["with µP"]["logits"]) == 2
    assert Image.open(tmp_path / "mup/coordinates.png").width > 100
    done = toto(*command, "--widths", "16,33", cwd=tmp_path, code=2)
    assert "33 does not fit" in done.stderr
    done = toto(*command, "--widths", "16", cwd=tmp_path, code=2)
    assert "two or more" in done.stderr
    before = (tmp_path / "mup/coordinates.json").read_bytes()
    done = toto(*command, "--widths", "16,32", "--lr", "1e38", cwd=tmp_path, code=2)
    assert "--lr 1e+38: layer 0 is not finite without µP" in done.stderr
    assert (tmp_path / "mup/coordinates.json").read_bytes() == before
    (tmp_path / "mup/coordinates.json").unlink()
    (tmp_path / "mup/coordinates.json").mkdir()
    done = toto(*command, "--widths", "16,32", cwd=tmp_path, code=1)
    assert "cannot be written" in done.stderr
