import gzip
import hashlib
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.base import MissingDataError, UnsuitableError
from tasks.char_text import CharText, load_text
from tasks.datasets import CorruptDataError


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Builds a CharText from a text, or from the numbers 0, 1, … written as characters."""
    folder = tmp_path_factory.mktemp("texts")

    def build(text, **settings):
        path = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.txt"
        path.write_bytes(text.encode())
        return CharText(CharText.Config(text=str(path), **settings), seed=1)

    return build


def counting(length):
    """A text in which every character is different, so that position can be read off."""
    return "".join(map(chr, range(0x4E00, 0x4E00 + length)))


@settings(deadline=None, max_examples=40)
@given(st.integers(230, 400), st.integers(1, 4), st.integers(1, 5))
def test_streams_run_on_and_targets_are_what_follows(make, length, batch_size, seq_len):
    task = make(counting(length), batch_size=batch_size, seq_len=seq_len)
    for split in ("train", "validation", "test"):
        text = task.splits[split]
        batches = list(task.batches(split))
        inputs = torch.cat([b.inputs for b in batches], 1)
        targets = torch.cat([b.targets for b in batches], 1)
        assert [b.is_start for b in batches] == [True] + [False] * (len(batches) - 1)
        # In a counting text the code of a character is its position.
        assert torch.equal(targets, inputs + 1)
        assert torch.equal(inputs.flatten(), text[: inputs.numel()])
        assert targets.max() <= text[-1]
        assert len(text) - 1 - inputs.numel() < batch_size
        assert all(b.inputs.shape == (batch_size, seq_len) for b in batches[:-1])
        assert 1 <= batches[-1].inputs.shape[1] <= seq_len
    training = list(task.training_batches(1))
    assert len(training) == task.num_updates
    for batch, reference in zip(training, task.batches("train"), strict=False):
        assert batch.inputs.shape == batch.targets.shape == (batch_size, seq_len)
        assert torch.equal(batch.inputs, reference.inputs)
        assert torch.equal(batch.targets, reference.targets)
        assert batch.is_start == reference.is_start


def test_splits_follow_each_other_without_overlap(make):
    task = make(counting(200), batch_size=1, seq_len=2, train=0.7, validation=0.2)
    assert [len(task.splits[s]) for s in ("train", "validation", "test")] == [140, 40, 20]
    assert torch.equal(torch.cat(list(task.splits.values())), torch.arange(200))


def test_every_epoch_reads_the_same_text(make):
    task = make(counting(100), batch_size=2, seq_len=3)
    for first, second in zip(task.training_batches(1), task.training_batches(7), strict=True):
        assert torch.equal(first.inputs, second.inputs)


def test_the_alphabet_is_sorted_and_only_of_the_text_in_use(make):
    task = make("banana " * 30 + "zyx" * 100, batch_size=2, seq_len=3, characters=210)
    assert task.alphabet == " abn"
    assert task.input_size == task.output_size == 4
    assert task.chance_loss == math.log(4)
    decoded = "".join(task.alphabet[c] for s in task.splits.values() for c in s.tolist())
    assert decoded == "banana " * 30
    assert task.fingerprint == hashlib.sha256(decoded.encode()).hexdigest()


def test_loss_is_the_negative_log_probability_of_the_target():
    task = CharText(CharText.Config(characters=20_000, batch_size=2, seq_len=5), seed=1)
    generator = torch.Generator().manual_seed(3)
    outputs_N = torch.randn(3, 2, 5, task.output_size, generator=generator, dtype=torch.float64)
    targets = torch.randint(task.output_size, (2, 5), generator=generator)
    loss = task.per_example(outputs_N, targets)["loss"]
    assert loss.shape == (3, 10)
    for n in range(3):
        for b in range(2):
            for t in range(5):
                p = outputs_N[n, b, t].exp() / outputs_N[n, b, t].exp().sum()
                expected = -p[targets[b, t]].log()
                torch.testing.assert_close(loss[n, 5 * b + t], expected, rtol=0, atol=1e-12)
    alone = task.per_example(outputs_N[1:2], targets)["loss"]
    assert torch.equal(loss[1:2], alone)


def test_a_network_that_knows_nothing_scores_chance():
    task = CharText(CharText.Config(characters=30_000), seed=1)
    targets = next(task.batches("validation")).targets
    outputs_N = torch.zeros(2, *targets.shape, task.output_size, dtype=torch.float64)
    loss = task.per_example(outputs_N, targets)["loss"].mean(1)
    assert loss.tolist() == pytest.approx([task.chance_loss] * 2, abs=1e-12)
    scores = task.summarise({"loss": loss})
    assert scores["perplexity"].tolist() == pytest.approx([task.output_size] * 2, abs=1e-9)
    assert scores[task.score_name].tolist() == pytest.approx([math.log2(task.output_size)] * 2)


def test_nan_stays_with_its_member():
    task = CharText(CharText.Config(characters=30_000), seed=1)
    targets = next(task.batches("validation")).targets
    outputs_N = torch.zeros(2, *targets.shape, task.output_size)
    outputs_N[0] = torch.nan
    loss = task.per_example(outputs_N, targets)["loss"]
    assert loss[0].isnan().all()
    assert loss[1].isfinite().all()


def test_probes_are_stretches_of_validation_text(make):
    task = make(counting(500), batch_size=2, seq_len=7)
    batch = task.probe_inputs(50, 12, torch.Generator().manual_seed(0))
    assert batch.inputs.shape == (50, 12)
    assert batch.inputs.dtype == torch.int64
    assert (batch.inputs.diff(dim=1) == 1).all()
    assert torch.equal(batch.targets, batch.inputs + 1)
    validation = task.splits["validation"]
    assert batch.inputs.min() >= validation[0]
    assert batch.targets.max() <= validation[-1]
    assert len(set(batch.inputs[:, 0].tolist())) > 10
    again = task.probe_inputs(50, 12, torch.Generator().manual_seed(0))
    assert torch.equal(batch.inputs, again.inputs)
    assert task.probe_inputs(3, None, torch.Generator()).inputs.shape == (3, 7)


def test_a_probe_as_long_as_the_validation_split_allows_and_no_longer(make):
    task = make(counting(500), batch_size=2, seq_len=7)
    batch = task.probe_inputs(2, 49, torch.Generator())
    assert torch.equal(batch.targets[0], task.splits["validation"][1:])
    with pytest.raises(UnsuitableError, match=r"at most 49.*got 50"):
        task.probe_inputs(2, 50, torch.Generator())


def test_a_text_too_short_is_refused_with_numbers_that_work(make):
    chosen = {"batch_size": 8, "seq_len": 16}
    with pytest.raises(UnsuitableError, match="129 characters in every split") as caught:
        make(counting(500), **chosen)
    message = str(caught.value)
    length, batch_size, seq_len = (
        int(re.search(pattern, message).group(1))
        for pattern in (
            r"text of (\d+) char",
            r"batch_size at most (\d+)",
            r"seq_len at most (\d+)",
        )
    )
    make(counting(length), **chosen)
    make(counting(500), **chosen | {"batch_size": batch_size})
    make(counting(500), **chosen | {"seq_len": seq_len})
    for too_much in ({"batch_size": batch_size + 1}, {"seq_len": seq_len + 1}):
        with pytest.raises(UnsuitableError):
            make(counting(500), **chosen | too_much)


@pytest.mark.parametrize(
    ("text", "settings", "complaint"),
    [
        (counting(300), {"characters": 301}, "at most 300.*got 301"),
        (counting(300), {"train": 0.9, "validation": 0.1}, r"below 1.*0\.9 \+ 0\.1"),
        ("a" * 300, {}, "at least 2 different characters"),
        ("", {}, "at least 2 different characters"),
    ],
)
def test_unsuitable_settings_are_explained(make, text, settings, complaint):
    with pytest.raises(UnsuitableError, match=complaint):
        make(text, batch_size=1, seq_len=1, **settings)


def test_texts_by_path_plain_packed_and_with_a_mark(tmp_path):
    text = "Größe\r\n" * 20
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "marked.txt").write_bytes(text.encode("utf-8-sig"))
    for name in ("a.txt", "a.txt.gz", "marked.txt"):
        assert load_text(str(tmp_path / name)) == text


def test_texts_that_cannot_be_read_are_named(tmp_path):
    latin, torn, fake = tmp_path / "latin.txt", tmp_path / "torn.gz", tmp_path / "fake.gz"
    latin.write_bytes("abc é".encode("latin-1"))
    torn.write_bytes(gzip.compress(b"text" * 100)[:-9])
    fake.write_bytes(b"text")
    with pytest.raises(UnsuitableError, match=r"latin\.txt must be UTF-8; byte 4 is not"):
        load_text(str(latin))
    with pytest.raises(CorruptDataError, match=r"torn\.gz"):
        load_text(str(torn))
    with pytest.raises(CorruptDataError, match=r"fake\.gz"):
        load_text(str(fake))
    with pytest.raises(MissingDataError, match=r"pydoc, war_and_peace.*no file .*nowhere\.txt"):
        load_text(str(tmp_path / "nowhere.txt"))


def test_war_and_peace_as_vogt_et_al_cut_it(real_data):
    real_data("war_and_peace")
    config = CharText.Config(text="war_and_peace", batch_size=100, seq_len=100)
    task = CharText(config, seed=1)
    assert task.fingerprint == "eaecfcb30408e2bc35ffe69b297127e3a6ca75548c033df4d2e703b5ff711f8d"
    assert task.input_size == 82
    assert task.num_updates == 256
    everything = torch.cat(list(task.splits.values()))
    assert len(everything) == 3_202_303
    p = torch.bincount(everything).double() / len(everything)
    assert -(p * p.log2()).sum().item() == pytest.approx(4.4659, abs=5e-5)
    start = "".join(task.alphabet[c] for c in everything[:46].tolist())
    assert start == 'CHAPTER I\n\n"Well, Prince, so Genoa and Lucca a'
