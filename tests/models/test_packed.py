"""Packed scoring and cached generation against transformers' own plain forward, one sequence at a time."""

import copy
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, Qwen3Config, Qwen3ForCausalLM

from pretraining.qwen3_build import build_tiny_qwen3, save, tiny_tokenizer
from unirl_env.errors import ContractError, ShapeError
from unirl_env.models.causal_lm import CausalLM
from unirl_env.models.shared import packed
from unirl_env.models.shared.alone import reads_alone

LENGTHS = {
    "one to twelve": list(range(1, 13)),
    "equal": [9] * 5,
    "one token": [1],
    "one sequence": [33],
    "very ragged": [60, 1, 2, 1, 19, 3, 44, 1],
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory, quiet_models):
    """An untrained Qwen3 whose attention is sharp enough that a wrong mask shows."""
    directory = build_tiny_qwen3(tmp_path_factory.mktemp("models") / "qwen3", seed=3)
    network = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.mul_(4)
    return save(network, tiny_tokenizer(), directory)


@pytest.fixture(scope="module")
def model(directory):
    return CausalLM(directory)


@pytest.fixture(scope="module")
def network(model):
    return model.network()


@pytest.fixture(scope="module")
def plain(directory):
    """The same weights in transformers' hands."""
    return AutoModelForCausalLM.from_pretrained(directory, attn_implementation="sdpa").eval()


def sequences(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 268, (length,), generator=generator) for length in lengths]


def scored(model, network, rows):
    """Hidden states `[L, D]` of packed sequences."""
    lengths = torch.tensor([len(row) for row in rows])
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    return model.hidden(network, torch.cat(rows)[None], positions[None, None], lengths=lengths)[0]


def one_by_one(network, rows):
    """The same by the plain model."""
    return torch.cat([network.model(input_ids=row[None]).last_hidden_state[0] for row in rows])


class TestPacked:
    @pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
    def test_hidden_states_are_those_of_each_sequence_alone(self, model, network, plain, lengths):
        rows = sequences(lengths)
        with torch.no_grad():
            got, expected = scored(model, network, rows), one_by_one(plain, rows)
        assert got.shape == expected.shape == (sum(lengths), 128)
        assert (got - expected).abs().max() <= 1e-5

    @pytest.mark.parametrize("lengths", [LENGTHS["one to twelve"], LENGTHS["very ragged"]])
    def test_so_are_gradients(self, model, plain, lengths):
        rows, network, plain = sequences(lengths), model.network(), copy.deepcopy(plain)
        weight = torch.randn(sum(lengths), 128, generator=torch.Generator().manual_seed(1))
        (scored(model, network, rows) * weight).sum().backward()
        (one_by_one(plain, rows) * weight).sum().backward()
        for (name, mine), theirs in zip(network.named_parameters(), plain.parameters(), strict=True):
            scale = theirs.grad.abs().max()
            assert scale > 0 and (mine.grad - theirs.grad).abs().max() <= 1e-5 * scale, name

    def test_a_sequence_sees_no_other(self, model, network):
        """Else the comparisons above would compare two mistakes."""
        rows = sequences([7, 11, 5])
        other = [rows[0], sequences([11], seed=9)[0], rows[2]]
        with torch.no_grad():
            here, there = scored(model, network, rows), scored(model, network, other)
        assert torch.equal(here[:7], there[:7]) and torch.equal(here[18:], there[18:])
        assert (here[7:18] - there[7:18]).abs().max() > 0.1

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_half_precision(self, directory, dtype):
        model = CausalLM(directory, dtype=dtype)
        network, rows = model.network(), sequences(LENGTHS["very ragged"])
        plain = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
        with torch.no_grad():
            got, expected = scored(model, network, rows), one_by_one(plain, rows)
        assert got.dtype == getattr(torch, dtype)
        assert (got.float() - expected.float()).abs().max() <= 0.1

    def test_gradient_checkpointing(self, model, network):
        rows, grads = sequences([3, 8, 20]), []
        for checkpointed in (False, True):
            network = model.network().train()
            if checkpointed:
                network.gradient_checkpointing_enable({"use_reentrant": False})
            scored(model, network, rows).square().sum().backward()
            grads.append([p.grad for p in network.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))

    def test_no_mask_of_all_pairs_is_made(self, model, network, monkeypatch):
        """Transformers would read the packing off the positions, and make a mask of L x L."""
        import transformers.masking_utils as masks

        monkeypatch.setattr(masks, "find_packed_sequence_indices", None)
        seen = []
        monkeypatch.setattr(
            packed, "_causal", lambda q, *rest, own=packed._causal: seen.append(q) or own(q, *rest)
        )
        scored(model, network, sequences([20, 3, 17, 4]))
        assert sorted({tuple(query.shape[:2]) for query in seen}) == [(2, 4), (2, 20)]

    @pytest.mark.parametrize("lengths", [[], [3, 0], [-1]])
    def test_lengths_that_are_none_are_refused(self, lengths):
        with pytest.raises(ShapeError, match="`lengths`"):
            packed.Packing.of(torch.tensor(lengths, dtype=torch.int64))

    def test_an_architecture_that_loses_the_keyword_is_refused(self):
        query = torch.randn(1, 2, 5, 8)
        with pytest.raises(ContractError, match="keywords of its forward call"):
            packed.packed_attention(torch.nn.Module(), query, query, query, torch.ones(1, 1, 1, 1).bool())


class TestCache:
    def test_step_by_step_is_the_whole(self, model, network, plain):
        (row,) = sequences([20])
        cache, got = DynamicCache(), []
        with torch.no_grad():
            for start, stop in [(0, 8), *((t, t + 1) for t in range(8, 20))]:
                positions = torch.arange(start, stop)[None, None]
                got.append(model.hidden(network, row[None, start:stop], positions, cache=cache)[0])
            assert (torch.cat(got) - one_by_one(plain, [row])).abs().max() <= 1e-5
        assert cache.get_seq_length() == 20

    def test_rows_padded_on_the_left(self, model, network, plain):
        rows, widest = sequences([4, 11, 7]), 11
        tokens, mask = torch.zeros(3, widest, dtype=torch.int64), torch.zeros(3, widest, dtype=torch.bool)
        for i, row in enumerate(rows):
            tokens[i, widest - len(row) :], mask[i, widest - len(row) :] = row, True
        more = torch.stack(sequences([5, 5, 5], seed=4))
        cache = DynamicCache()
        with torch.no_grad():
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            first = model.hidden(network, tokens, positions[None], mask=mask, cache=cache)
            assert torch.isfinite(first).all(), "padding, too: it must not poison the cache"
            last = []
            for t in range(5):
                mask = torch.cat([mask, mask.new_ones(3, 1)], 1)
                positions = mask.sum(1, keepdim=True) - 1
                last.append(
                    model.hidden(network, more[:, t : t + 1], positions[None], mask=mask, cache=cache)
                )
            got = torch.cat([first, *last], 1)
            for i, row in enumerate(rows):
                expected = one_by_one(plain, [torch.cat([row, more[i]])])
                assert (got[i, widest - len(row) :] - expected).abs().max() <= 1e-5

    def test_one_network_does_both_by_turns(self, model, network):
        rows = sequences([6, 13])
        with torch.no_grad():
            before = scored(model, network, rows)
            cached = model.hidden(network, rows[1][None], torch.arange(13)[None, None], cache=DynamicCache())
            after = scored(model, network, rows)
        assert torch.equal(before, after) and (cached[0] - before[6:]).abs().max() <= 1e-5

    def test_rows_can_be_selected_and_repeated(self, model, network):
        rows = torch.stack(sequences([6, 6]))
        cache = DynamicCache()
        positions = torch.arange(6).expand(1, 2, 6)
        with torch.no_grad():
            model.hidden(network, rows, positions, cache=cache)
            cache.batch_select_indices(torch.tensor([1, 1, 0]))
            step = model.hidden(network, torch.tensor([[5]] * 3), torch.full((1, 3, 1), 6), cache=cache)
        assert torch.equal(step[0], step[1]) and (step[0] - step[2]).abs().max() > 0.01


class TestOtherQwen3:
    """Options that the embedded model leaves alone."""

    @pytest.mark.parametrize(
        "options",
        [
            {"tie_word_embeddings": False, "attention_bias": True},
            {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
            {"num_key_value_heads": 4, "head_dim": 20},
        ],
        ids=["untied, biased", "sliding", "yarn", "no groups"],
    )
    def test_a_published_form_is_scored_alike(self, tmp_path, quiet_models, options):
        sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "eos_token_id": 258}
        torch.manual_seed(0)
        plain = Qwen3ForCausalLM(
            Qwen3Config(**{**sizes, **heads, "initializer_range": 0.3, **options})
        ).eval()
        plain.save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        model = CausalLM(tmp_path)
        network, rows = model.network(), sequences([3, 17, 30, 1])
        with torch.no_grad():
            assert (scored(model, network, rows) - one_by_one(plain, rows)).abs().max() <= 2e-5
            lengths, follows, ends = BRANCHES["unequal"]
            trunks, ends = sequences(lengths), sequences(ends, seed=4)
            got = branched(model, network, trunks, follows, ends)
            assert (got - in_full(plain, trunks, follows, ends)).abs().max() <= 2e-5
            logits = plain(input_ids=rows[1][None]).logits[0]
            mine = scored(model, network, rows)[3:20] @ model.head(network).T
            assert (mine - logits).abs().max() <= 1e-4
            cache, got = DynamicCache(config=network.config), []
            for t in range(17):
                got.append(
                    model.hidden(network, rows[1][None, t : t + 1], torch.full((1, 1, 1), t), cache=cache)
                )
            assert (torch.cat(got, 1)[0] - one_by_one(plain, rows[1:2])).abs().max() <= 2e-5


BRANCHES = {
    "of one prompt": ([9], [0, 0, 0], [4, 4, 4]),
    "unequal": ([3, 12, 30, 1], [0, 2, 1, 1, 2, 0, 3, 1], [5, 1, 20, 2, 40, 1, 3, 7]),
    "one of its own beside": ([6, 6], [0, 0], [3, 2]),
}


def branched(model, network, trunks, follows, ends):
    """Hidden states of trunks, each once, and of the ends that go on from them."""
    lengths = torch.tensor([len(part) for part in (*trunks, *ends)])
    begins = [0] * len(trunks) + [len(trunks[i]) for i in follows]
    positions = torch.cat([n + torch.arange(len(p)) for n, p in zip(begins, (*trunks, *ends), strict=True)])
    return model.hidden(
        network,
        torch.cat([*trunks, *ends])[None],
        positions[None, None],
        lengths=lengths,
        follows=torch.tensor([-1] * len(trunks) + list(follows)),
    )[0]


def in_full(network, trunks, follows, ends):
    """The same by the plain model, which reads a trunk with each of its ends."""
    texts = [network.model(input_ids=trunk[None]).last_hidden_state[0] for trunk in trunks]
    for i, end in zip(follows, ends, strict=True):
        whole = network.model(input_ids=torch.cat([trunks[i], end])[None]).last_hidden_state[0]
        texts.append(whole[len(trunks[i]) :])
    return torch.cat(texts)


class TestBranches:
    @pytest.mark.parametrize("case", BRANCHES.values(), ids=BRANCHES)
    def test_they_are_read_as_if_each_had_its_trunk(self, model, plain, case):
        lengths, follows, ends = case
        trunks, ends = sequences(lengths), sequences(ends, seed=4)
        network, plain = model.network(), copy.deepcopy(plain)
        assert model.branches(network)
        got, expected = branched(model, network, trunks, follows, ends), in_full(plain, trunks, follows, ends)
        assert (got - expected).abs().max() <= 2e-5
        weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
        (got * weight).sum().backward()
        (expected * weight).sum().backward()
        for (name, mine), theirs in zip(network.named_parameters(), plain.parameters(), strict=True):
            scale = theirs.grad.abs().max()
            assert scale > 0 and (mine.grad - theirs.grad).abs().max() <= 2e-5 * scale, name

    @pytest.mark.parametrize("follows", [[-1, 0, 1], [-1, 5, -1], [-1, 0]])
    def test_what_cannot_be_followed_is_refused(self, follows):
        with pytest.raises(ShapeError, match="`follows`"):
            packed.Packing.of(torch.tensor([3, 2, 4]), follows=torch.tensor(follows))

    def test_the_keys_of_a_kernel_without_padding(self):
        """What flash attention is given: for each sequence the places of its trunk and its own."""
        packing = packed.Packing.of(torch.tensor([3, 2, 1, 4]), follows=torch.tensor([-1, -1, 0, 1]))
        branches = packing.branches
        keys = [branches.index[a:b].tolist() for a, b in pairwise(branches.offsets.tolist())]
        assert keys == [[0, 1, 2], [3, 4], [0, 1, 2, 5], [3, 4, 6, 7, 8, 9]]
        assert (packing.longest, branches.longest_query) == (6, 4)

    def test_a_network_that_drops_them_is_found_out(self, directory, monkeypatch):
        own = packed.Packing.of
        monkeypatch.setattr(
            packed.Packing, "of", lambda lengths, device="cpu", follows=None: own(lengths, device)
        )
        model = CausalLM(directory)
        network = model.network()
        assert not model.branches(network) and not reads_alone(network)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("follows", [None, [-1, -1, 0, 1]])
@pytest.mark.parametrize("window", [None, 5])
def test_flash_attention_is_the_padded_one(window, follows):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, 30, 7, 64])
    packing = packed.Packing.of(lengths, "cuda", None if follows is None else torch.tensor(follows))
    shapes = [(1, heads, 102, 32) for heads in (4, 2, 2)]
    states = [torch.randn(s, generator=generator).cuda().bfloat16().requires_grad_() for s in shapes]
    flash = packed._flash(*(s[0].transpose(0, 1) for s in states), packing, None, window)
    wide = [state.detach().float().requires_grad_() for state in states]
    padded, _ = packed.packed_attention(
        torch.nn.Module(), *wide, None, sliding_window=window, packed_sequences=packing
    )
    flash.float().square().sum().backward()
    padded.square().sum().backward()
    assert (flash.float() - padded[0]).abs().max() <= 0.03
    assert all((a.grad.float() - b.grad).abs().max() <= 0.1 for a, b in zip(states, wide, strict=True))
