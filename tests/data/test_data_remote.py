import errno
import os
import pickle
import shutil
import time
from multiprocessing import get_context

import fsspec
import numpy as np
import pytest
import torch
from flaky_server import serving
from toy_data import picture_dataset, token_dataset

from toto.data import fetch
from toto.data.config import CacheConfig, ClipConfig
from toto.data.index import Dataset
from toto.data.loader import training_batches
from toto.data.manifest import manifest_json, parse_manifest
from toto.data.stream import Stream, StreamSource
from toto.errors import DataError

CLIP = ClipConfig(frames=4, stride=2, resolution=8)
SHARD = "shard-00000.tar"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Token shards of some 45 kB each, and pictures; written once, never changed."""
    root = tmp_path_factory.mktemp("served")
    token_dataset(root / "tokens", [2_500 + n for n in range(36)], resolution=8, shard_samples=2)
    picture_dataset(root / "pictures", 21, shard_samples=4)
    return root


@pytest.fixture
def server(root, monkeypatch):
    monkeypatch.setattr(fetch, "FIRST_PAUSE_SECONDS", 0.01)
    with serving(root) as server:
        yield server


def cache(tmp_path, **changes):
    return CacheConfig(folder=str(tmp_path / "cache"), **({"ahead": 0, "retries": 3} | changes))


def open_remote(server, config, name="tokens"):
    return Dataset.open(f"{server.address}/{name}", config)


def cached_bytes(config):
    """What the cache takes now; a file may go while it is looked at."""
    total = 0
    for folder, _, names in os.walk(config.folder):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total


def cached_shards(config):
    return sorted(
        name
        for _, _, names in os.walk(config.folder)
        for name in names
        if name.startswith("shard-")
    )


def leftovers(config):
    return [
        name
        for _, _, names in os.walk(config.folder)
        for name in names
        if name.startswith(".") and name != ".lock"
    ]


def contents(dataset):
    return [bytes(dataset.read(i)) for i in range(dataset.num_samples)]


@pytest.mark.parametrize("name", ["tokens", "pictures"])
def test_a_remote_dataset_is_the_local_one(server, root, tmp_path, name):
    remote, local = open_remote(server, cache(tmp_path), name), Dataset.open(root / name)
    assert contents(remote) == contents(local)
    assert (remote.name, remote.kind, remote.classes) == (name, local.kind, local.classes)
    for i in range(local.num_samples):
        assert (remote.key(i), remote.label(i)) == (local.key(i), local.label(i))
        assert remote.frames(i) == local.frames(i)
    assert list(remote.origins()) == list(local.origins())
    assert remote.path == f"{server.address}/{name}"
    with pytest.raises(DataError, match="no single folder"):
        _ = remote.folder


def test_what_is_cached_is_not_fetched_again(server, tmp_path):
    contents(open_remote(server, cache(tmp_path)))
    before = server.served.copy()
    contents(open_remote(server, cache(tmp_path)))
    again = {name for name in server.served if server.served[name] > before[name]}
    assert again == {"manifest.json", "excluded.jsonl"}
    assert server.served[SHARD] == 1
    assert "label.i32" not in server.served


def test_a_pickled_dataset_asks_no_server_to_open(server, tmp_path):
    dataset = open_remote(server, cache(tmp_path))
    expected = bytes(dataset.read(1))
    server.served.clear()
    assert bytes(pickle.loads(pickle.dumps(dataset)).read(1)) == expected
    assert not server.served


def test_a_changed_dataset_is_another_entry(server, root, tmp_path):
    open_remote(server, cache(tmp_path)).read(0)
    changed = parse_manifest((root / "tokens" / "manifest.json").read_bytes(), "manifest")
    changed = changed.model_copy(
        update={"tokens": changed.tokens.model_copy(update={"tokenizer": {"name": "joy"}})}
    )
    server.content["manifest.json"] = manifest_json(changed).encode()
    assert open_remote(server, cache(tmp_path)).tokens.tokenizer == {"name": "joy"}
    entries = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(entries) == 2


def test_exclusions_are_honoured(server, root, tmp_path):
    shutil.copytree(root / "pictures", root / "excluding")
    (root / "excluding" / "excluded.jsonl").write_text('{"sample": 3}\n')
    dataset = open_remote(server, cache(tmp_path), "excluding")
    assert pickle.loads(pickle.dumps(dataset)).excluded.tolist() == [3]


def test_a_server_that_refuses_what_is_not_there_says_how_to_go_on(server, tmp_path):
    server.always = {"excluded.jsonl": 403}
    with pytest.raises(DataError, match=r"excluded\.jsonl cannot be fetched.*put an empty one"):
        open_remote(server, cache(tmp_path))


def test_no_exclusions_in_an_empty_list(server, root, tmp_path):
    shutil.copytree(root / "pictures", root / "empty-list")
    (root / "empty-list" / "excluded.jsonl").touch()
    assert not len(open_remote(server, cache(tmp_path), "empty-list").excluded)


def test_any_address_of_fsspec_will_do(root, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.put(str(root / "pictures"), "/bucket/pictures", recursive=True)
    remote = Dataset.open("memory://bucket/pictures", cache(tmp_path))
    assert contents(remote) == contents(Dataset.open(root / "pictures"))


def load(dataset, workers):
    steps = training_batches(
        Stream([StreamSource("t", dataset)], CLIP, 0),
        batch_sequences=6,
        micro_batch=6,
        workers=workers,
        start_step=3,
        stop_step=15,
    )
    return [batch.codes_BTHW for (batch,) in steps]


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("max_gb", [1.0, 2.3e-4])  # all 18 shards, or 4 of them
def test_batches_are_those_of_the_local_dataset(server, root, tmp_path, workers, max_gb, ahead):
    config = cache(tmp_path, max_gb=max_gb, ahead=ahead)
    remote = load(open_remote(server, config), workers)
    local = load(Dataset.open(root / "tokens"), 0)
    assert all(torch.equal(r, x) for r, x in zip(remote, local, strict=True))


def deleted_but_mapped():
    with open("/proc/self/maps") as maps:
        return {line.split()[4] for line in maps if "shard-" in line and "(deleted)" in line}


def test_the_cache_stays_within_its_bound(server, tmp_path):
    config = cache(tmp_path, max_gb=2.3e-4)
    dataset = open_remote(server, config)
    for i in range(dataset.num_samples):
        dataset.read(i)
        assert cached_bytes(config) <= 230_000
        assert not deleted_but_mapped()
    assert len(cached_shards(config)) == 4


def test_the_shards_not_used_for_longest_make_room(server, tmp_path):
    config = cache(tmp_path, max_gb=2.3e-4)
    dataset = open_remote(server, config)
    for shard in (0, 1, 2, 3):
        dataset.read(2 * shard)
        time.sleep(0.01)
    pickle.loads(pickle.dumps(dataset)).read(0)  # used by another process, say
    dataset.read(8)
    assert cached_shards(config) == [f"shard-0000{n}.tar" for n in (0, 2, 3, 4)]


def test_an_evicted_shard_is_readable_while_it_is_mapped(server, tmp_path):
    dataset = open_remote(server, cache(tmp_path, max_gb=2.3e-4))
    view = dataset.read(0)
    before = bytes(view)
    for i in range(2, 30):
        dataset.read(i)
    assert SHARD not in cached_shards(cache(tmp_path))
    assert bytes(view) == before == bytes(dataset.read(0))


def test_a_cache_without_room_for_a_shard_says_so(server, tmp_path):
    dataset = open_remote(server, cache(tmp_path, max_gb=4e-5))
    with pytest.raises(DataError, match=r"GB too few for shard-00000\.tar.*data\.cache\.max_gb"):
        dataset.read(0)


def test_a_cache_smaller_than_a_window_is_said(server, tmp_path, caplog):
    open_remote(server, cache(tmp_path, max_gb=1.0))
    assert not caplog.records
    open_remote(server, cache(tmp_path, max_gb=2.3e-4))
    assert "they will be fetched again and again" in caplog.text


def read_all(dataset, start, results):
    numbers = np.roll(np.arange(dataset.num_samples), start)
    results.put(hash(tuple(bytes(dataset.read(i)) for i in sorted(numbers.tolist()))))


def watch(config, processes):
    most = 0
    while any(process.is_alive() for process in processes):
        most = max(most, cached_bytes(config))
    return most


@pytest.mark.distributed
@pytest.mark.parametrize("max_gb", [1.0, 2.3e-4])
def test_processes_share_a_cache(server, tmp_path, max_gb):
    config = cache(tmp_path, max_gb=max_gb)
    dataset = open_remote(server, config)
    context = get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=read_all, args=(dataset, start, results)) for start in (0, 0, 11)
    ]
    for process in processes:
        process.start()
    most = watch(config, processes)
    assert len({results.get(timeout=60) for _ in processes}) == 1
    assert most <= max_gb * 1e9
    if max_gb == 1.0:
        assert {n: c for n, c in server.served.items() if n.startswith("shard-")} == {
            f"shard-{n:05d}.tar": 1 for n in range(18)
        }


def test_what_a_killed_process_left_is_removed(server, tmp_path):
    config = cache(tmp_path, max_gb=2.3e-4)
    dataset = open_remote(server, config)
    dataset.read(0)
    (entry,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    # Its claim, which takes all of the cache, and what it had of the shard.
    (entry / ".shard-00009.tar.230000.partial").touch()
    (entry / ".shard-00009.tar.230000.partial.content.1-1").write_bytes(b"half")
    dataset.read(4)
    assert not leftovers(config)


def read_first(dataset):
    dataset.read(0)


@pytest.mark.distributed
def test_a_process_killed_while_it_fetches_holds_up_nobody(server, root, tmp_path):
    config = cache(tmp_path, stall_seconds=60)
    dataset = open_remote(server, config)
    server.faults = {SHARD: ["stall"]}
    process = get_context("fork").Process(target=read_first, args=(dataset,))
    process.start()
    wait_until(lambda: any(".content" in name for name in leftovers(config)))
    process.kill()
    process.join()
    assert bytes(dataset.read(0)) == bytes(Dataset.open(root / "tokens").read(0))
    dataset.read(2)
    assert not leftovers(config)


def test_other_folders_in_the_cache_folder_are_left_alone(server, root, tmp_path):
    shutil.copytree(root / "tokens", tmp_path / "cache" / "mine")
    dataset = open_remote(server, cache(tmp_path, max_gb=2.3e-4))
    contents(dataset)
    assert contents(Dataset.open(tmp_path / "cache" / "mine")) == contents(dataset)


@pytest.mark.parametrize("fault", [500, 503, 429, "drop", "truncate", "stall"])
def test_a_fetch_is_tried_again(server, root, tmp_path, fault):
    config = cache(tmp_path, stall_seconds=0.2)
    server.faults = {SHARD: [fault] * 3, "manifest.json": [fault], "offset.u64": [fault] * 2}
    dataset = open_remote(server, config)
    assert bytes(dataset.read(0)) == bytes(Dataset.open(root / "tokens").read(0))
    assert (server.served[SHARD], server.served["manifest.json"]) == (4, 2)
    assert not leftovers(config)


@pytest.mark.parametrize("fault", [500, "drop", "truncate", "stall"])
def test_a_fetch_is_not_tried_for_ever(server, tmp_path, fault):
    config = cache(tmp_path, stall_seconds=0.2)
    server.always = {SHARD: fault}
    dataset = open_remote(server, config)
    with pytest.raises(DataError, match=r"tokens/shard-00000\.tar cannot be fetched \(4 tries\)"):
        dataset.read(0)
    # aiohttp asks once more by itself where a connection was dropped before an answer.
    assert server.served[SHARD] == (8 if fault == "drop" else 4)
    assert not cached_shards(config)
    assert not leftovers(config)


def test_what_is_refused_is_not_tried_again(server, tmp_path):
    server.always = {SHARD: 403}
    dataset = open_remote(server, cache(tmp_path))
    with pytest.raises(DataError, match=r"shard-00000\.tar cannot be fetched \(1 try\): 403"):
        dataset.read(0)


def test_a_missing_shard_is_named(server, tmp_path):
    server.always = {SHARD: 404}
    with pytest.raises(DataError, match=r"http://.*/tokens/shard-00000\.tar is missing. Copy it"):
        open_remote(server, cache(tmp_path)).read(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-600], r"cannot be fetched \(4 tries\): \d+ of \d+ bytes came"),
        (lambda content: content[:-1] + b"x", "and the manifest says .* Copy the whole dataset"),
        (
            lambda content: content + b"x",
            "has more than .* the manifest says: .* Copy the whole",
        ),
    ],
)
def test_a_changed_shard_is_named_and_not_kept(server, root, tmp_path, change, message):
    config = cache(tmp_path)
    server.content[SHARD] = change((root / "tokens" / SHARD).read_bytes())
    dataset = open_remote(server, config)
    with pytest.raises(DataError, match=rf"http://.*/tokens/shard-00000\.tar .*{message}"):
        dataset.read(0)
    assert not cached_shards(config)
    assert not leftovers(config)
    assert len(dataset.read(2))


def test_a_column_of_another_length_is_named(server, tmp_path):
    server.content["offset.u64"] = bytes(8 * 37)
    with pytest.raises(DataError, match=r"tokens/offset\.u64 has more than the 288 bytes"):
        open_remote(server, cache(tmp_path)).read(0)


def test_an_index_of_another_packing_is_named(server, root, tmp_path):
    offsets = np.frombuffer((root / "tokens" / "offset.u64").read_bytes(), "<u8") + 512
    server.content["offset.u64"] = offsets.tobytes()
    with pytest.raises(DataError, match=r"offset\.u64 the part of shard-00000\.tar is not what"):
        open_remote(server, cache(tmp_path)).read(0)


def test_no_dataset_at_an_address(server, tmp_path):
    with pytest.raises(DataError, match=r"no dataset at http://.*/none: it has no manifest"):
        open_remote(server, cache(tmp_path), "none")


def test_no_server_at_an_address(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "FIRST_PAUSE_SECONDS", 0.01)
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/d/manifest\.json cannot be fetch"):
        Dataset.open("http://127.0.0.1:9/d", cache(tmp_path))


def test_an_unknown_scheme_says_so(tmp_path):
    with pytest.raises(DataError, match=r"nope://d cannot be opened: Protocol not known"):
        Dataset.open("nope://d", cache(tmp_path))


def test_a_full_disk_is_a_message(server, tmp_path, monkeypatch):
    dataset = open_remote(server, cache(tmp_path))

    def full(self, name, part, limit, progress):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetch.Remote, "_fetch_watched", full)
    with pytest.raises(DataError, match=r"\(1 try\): .*No space left"):
        dataset.read(0)


@pytest.mark.parametrize("name", ["manifest.json", "excluded.jsonl", "frames.u32", SHARD])
def test_a_body_without_an_end_is_not_read_to_its_end(server, tmp_path, name):
    """Nor is a full disk needed to notice it: no more than the cache may hold is read."""
    config = cache(tmp_path, max_gb=0.02)
    server.always = {name: "endless"}
    with pytest.raises(DataError, match=rf"/tokens/{name} (is longer|has more) than"):
        open_remote(server, config).read(0)
    assert server.served[name] == 1
    assert server.sent < 40e6
    assert not leftovers(config)
    assert cached_bytes(config) < 1e6


def test_a_list_of_originals_without_an_end_is_refused_too(server, tmp_path):
    server.always = {"files.jsonl": "endless"}
    with pytest.raises(DataError, match=r"files\.jsonl is longer than 20,000,000 bytes"):
        next(open_remote(server, cache(tmp_path, max_gb=0.02)).origins())


def test_nothing_is_unpacked_that_a_server_compressed(server, tmp_path):
    server.content["manifest.json"] = b" " * 2**26
    server.always = {"manifest.json": "gzip"}
    config = cache(tmp_path)
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        open_remote(server, config)
    assert cached_bytes(config) < 2**20


@pytest.mark.parametrize("name", ["manifest.json", SHARD])
def test_a_redirect_to_another_host_is_refused(server, root, tmp_path, name):
    with serving(root) as other:
        elsewhere = other.address.replace("127.0.0.1", "localhost")
        server.always = {name: f"{elsewhere}/tokens/{name}"}
        with pytest.raises(DataError, match=r"to another host, localhost.*redirect_hosts"):
            open_remote(server, cache(tmp_path)).read(0)
        assert not other.served
        allowed = open_remote(server, cache(tmp_path, redirect_hosts=("localhost",)))
        assert bytes(allowed.read(0)) == bytes(Dataset.open(root / "tokens").read(0))


def test_a_redirect_on_the_same_host_is_followed(server, root, tmp_path):
    server.faults = {SHARD: [f"{server.address}/tokens/{SHARD}"]}
    dataset = open_remote(server, cache(tmp_path))
    assert bytes(dataset.read(0)) == bytes(Dataset.open(root / "tokens").read(0))


@pytest.mark.distributed
def test_a_manifest_that_a_killed_process_fetched_leaves_nothing(server, tmp_path):
    config = cache(tmp_path, stall_seconds=60)
    server.faults = {"manifest.json": ["stall"]}
    process = get_context("fork").Process(target=open_remote, args=(server, config))
    process.start()
    wait_until(lambda: any(".content" in name for name in leftovers(config)))
    process.kill()
    process.join()
    open_remote(server, config)
    assert not leftovers(config)


def test_a_cache_folder_that_cannot_be_made_is_a_message(server, tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(DataError, match=r"the cache of shards cannot be used.*data\.cache\.folder"):
        open_remote(server, cache(tmp_path))


def wait_until(condition):
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


def test_shards_are_fetched_before_they_are_needed(server, tmp_path):
    config = cache(tmp_path, ahead=2)
    dataset = open_remote(server, config)
    dataset.prefetch([5, 3, 4])
    wait_until(lambda: len(cached_shards(config)) == 3)
    assert cached_shards(config) == [f"shard-0000{n}.tar" for n in (3, 4, 5)]
    server.served.clear()
    dataset.read(6)
    assert server.served.keys() == {"offset.u64", "size.u64", "frames.u32"}


def test_the_stream_reads_ahead_of_its_window(server, tmp_path):
    """Two windows of 16 and 2 shards: at the end of the first, the second is there."""
    config = cache(tmp_path, ahead=2)
    source = Stream([StreamSource("t", open_remote(server, config))], CLIP, 0).sources[0]
    first_window = 16 * source.num_units // 18
    source.sequences([0], source=0, positions=[0])
    wait_until(lambda: len(cached_shards(config)) == 17)
    source.sequences([first_window - 40], source=0, positions=[0])
    wait_until(lambda: len(cached_shards(config)) == 18)


def test_no_more_is_fetched_ahead_than_the_cache_holds(server, tmp_path):
    config = cache(tmp_path, ahead=1, max_gb=2.3e-4)
    dataset = open_remote(server, config)
    dataset.prefetch(range(16))
    wait_until(lambda: len(cached_shards(config)) == 4)
    time.sleep(0.2)
    assert cached_shards(config) == [f"shard-0000{n}.tar" for n in range(4)]


def test_an_epoch_fetches_each_shard_once(root, server, tmp_path):
    """The cache holds two windows, less than the dataset."""
    token_dataset(root / "long", [300] * 100, resolution=8, shard_samples=2)
    config = cache(tmp_path, ahead=2, max_gb=4.2e-4)
    dataset = open_remote(server, config, "long")
    source = Stream([StreamSource("t", dataset)], CLIP, 0).sources[0]
    for first in range(0, source.num_units - 40, 40):
        numbers = range(first, first + 40)
        source.sequences(numbers, source=0, positions=numbers)
        assert cached_bytes(config) <= 420_000
    assert len(cached_shards(config)) < 50
    shards = {name: count for name, count in server.served.items() if name.startswith("shard-")}
    assert len(shards) == 50
    # The last of an epoch is the first of the next, which is read ahead of.
    assert sum(shards.values()) <= 50 + 16


def test_a_fetch_ahead_that_fails_is_left_to_the_read(server, tmp_path):
    server.always = {SHARD: 500}
    dataset = open_remote(server, cache(tmp_path, ahead=1, retries=0))
    dataset.prefetch([0, 1])
    wait_until(lambda: cached_shards(cache(tmp_path)) == ["shard-00001.tar"])
    with pytest.raises(DataError, match="cannot be fetched"):
        dataset.read(0)


def test_a_shard_that_was_changed_in_the_cache_is_fetched_again(server, tmp_path, caplog):
    wanted = bytes(open_remote(server, cache(tmp_path)).read(0))
    (path,) = (tmp_path / "cache").glob("*/shard-00000.tar")
    open_remote(server, cache(tmp_path)).read(0)
    assert server.served[SHARD] == 1
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    assert bytes(open_remote(server, cache(tmp_path)).read(0)) == wanted
    assert server.served[SHARD] == 2
    assert "was changed after it was fetched; fetching it again" in caplog.text
