"""The prefix tree: what it finds, what it gives back, and what calls make of it."""

from __future__ import annotations

import numpy as np
import pytest
from cache_pages import append, check
from helpers import tiny_llama_gguf

import edgellm
from edgellm import clib
from edgellm.cache import NO_PAGE, PAGE_TOKENS, Overflow, PagePool, PrefixTree, Sequence, n_blocks
from edgellm.errors import NotEnoughMemoryError
from edgellm.plan import KVShape

SHAPE = KVShape(n_layers=3, n_kv_heads=1, head_dim=2)
WINDOWED = KVShape(n_layers=3, n_kv_heads=1, head_dim=2, windows=(0, 100, 0))
N_CTX = 4096


def tree_of(shape: KVShape = SHAPE, n_pages: int = 600) -> PrefixTree:
    return PrefixTree(PagePool(shape, "f32", n_pages))


def put(tree: PrefixTree, ids: list[int], exact: bool = True, n_pass: int = 500) -> None:
    """A finished sequence of `ids`, run from its longest prefix on."""
    with tree.match(ids, N_CTX, exact=exact) as seq:
        while seq.length < len(ids):
            append(seq, ids[seq.length :][:n_pass], exact)
        tree.insert(seq)


def found(tree: PrefixTree, ids: list[int], **options: object) -> int:
    with tree.match(ids, N_CTX, **options) as seq:
        check(seq, ids[: seq.length])
        return seq.length


def test_the_longest_prefix_to_the_token() -> None:
    tree = tree_of()
    a = list(range(1000, 1300))
    put(tree, a)
    assert found(tree, a) == 300
    assert found(tree, a[:17]) == 17
    assert found(tree, [*a[:70], 5, *a[71:]]) == 70
    assert found(tree, [*a, 5]) == 300
    assert found(tree, [5, *a]) == 0
    assert found(tree, []) == 0
    b = [*a[:70], *range(2000, 2100)]
    put(tree, b)
    assert (found(tree, a), found(tree, b)) == (300, 170)
    assert tree.n_nodes == 5 + 2, "the first block is shared, the second is not"


def test_a_last_block_grows() -> None:
    """A turn after the other: the block that ended one is replaced by the one that goes on."""
    tree = tree_of()
    ids = list(range(500))
    for n in (10, 40, 64, 65, 130, 129, 500, 3):
        put(tree, ids[:n])
    assert tree.n_nodes == n_blocks(500)
    assert tree.pool.n_pages - tree.pool.n_free == n_blocks(500) * SHAPE.n_layers
    assert found(tree, ids) == 500


def test_a_sequence_that_writes_to_a_shared_page_copies_it() -> None:
    tree = tree_of()
    ids = list(range(100))
    put(tree, ids)
    free = tree.pool.n_free
    with tree.match(ids, N_CTX) as one, tree.match(ids[:90], N_CTX) as two:
        assert tree.pool.n_free == free
        append(one, [7] * 10)
        append(two, [8] * 10)
        assert tree.pool.n_free == free - 2 * SHAPE.n_layers, "the last block of each"
        check(one, ids + [7] * 10)
        check(two, ids[:90] + [8] * 10)
    assert found(tree, ids) == 100


def test_least_recently_used_ends_leave_first() -> None:
    tree = tree_of(n_pages=30)
    a, b, c = ([k, *range(1, 192)] for k in (10001, 10002, 10003))  # three blocks of three layers each
    for ids in (a, b, c):
        put(tree, ids)
    assert tree.pool.n_free == 3
    found(tree, a)
    put(tree, [10004, *range(1, 192)])  # needs 9 pages: b goes, the last block first
    assert [found(tree, ids) for ids in (a, b, c)] == [192, 64, 192]
    tree.evict(30)
    assert tree.n_nodes == 0 and tree.pool.n_free == 30


def test_what_a_live_sequence_shares_is_not_lost() -> None:
    tree = tree_of(n_pages=12)
    ids = list(range(192))
    put(tree, ids)
    with tree.match(ids, N_CTX) as seq:
        with pytest.raises(NotEnoughMemoryError), Sequence(tree.pool, N_CTX) as other:
            append(other, list(range(400)))
        assert tree.n_nodes == 0, "the tree gave up what it had"
        check(seq, ids)
        append(seq, [1, 2, 3])
    assert tree.pool.n_free == 12


def test_policies_see_no_more_than_one_token_would() -> None:
    tree = tree_of()
    ids = list(range(600))
    put(tree, ids)
    for policy, n in (("error", 200), ("sink:4:100", 104), ("sink:0:64", 64), ("shift", 200), ("drop-turns", 200)):
        with tree.match(ids, 200, policy) as seq:
            assert (seq.length, seq.dropped) == (n, 0)
            append(seq, [1]) if policy.startswith("s") else None


def test_sequences_that_dropped_tokens_stay_out() -> None:
    tree = tree_of()
    with Sequence(tree.pool, 200, "sink:4:100") as seq:
        append(seq, list(range(104)))
        tree.insert(seq)
        assert found(tree, list(range(300))) == 104
        append(seq, list(range(104, 300)))
        tree.insert(seq)
    assert found(tree, list(range(300))) == 104
    with Sequence(tree.pool, 200) as seq:
        seq.ensure(10)
        seq.commit(10)  # tokens that nobody knows
        tree.insert(seq)
    assert tree.n_nodes == 2


def test_exact_calls_do_not_use_what_others_made() -> None:
    tree = tree_of()
    ids = list(range(300))
    put(tree, ids, exact=False)
    assert (found(tree, ids), found(tree, ids, exact=True)) == (300, 0)
    with tree.match([], N_CTX) as seq:
        append(seq, ids[:100], exact=True)
        append(seq, ids[100:200], exact=False)
        append(seq, ids[200:], exact=True)  # stands on what is not exact
        assert seq.exact == 100
        tree.insert(seq)
    assert (found(tree, ids), found(tree, ids, exact=True)) == (300, 100)
    with tree.match(ids, N_CTX, exact=True) as seq:
        assert (seq.length, seq.exact) == (100, 100)
    put(tree, ids, exact=True)
    assert found(tree, ids, exact=True) == 300


def test_layers_with_a_window_shorten_a_match() -> None:
    """Only where the window of the next token is there can a sequence go on."""
    tree = tree_of(WINDOWED)
    ids = list(range(2000))
    put(tree, ids)
    table = {node.ids[0] // PAGE_TOKENS: node.pages[1] for node in tree._nodes()}
    first = min(block for block, page in table.items() if page != NO_PAGE)
    assert first == (2000 - 100 + 1 - 512) // PAGE_TOKENS
    assert found(tree, ids) == 2000
    lowest = first * PAGE_TOKENS + 99
    assert found(tree, ids[:lowest]) == lowest
    assert found(tree, ids[: lowest - 1]) == 0, "one token of the window is gone, and so it is for all before"
    put(tree, ids[:150])  # a shorter text brings the pages of the beginning back, those of whole blocks
    assert found(tree, ids[:150]) == 128 and found(tree, ids) == 2000


def test_a_fork_costs_what_it_adds() -> None:
    """16 forks of a prefix of 2,000 tokens: its pages once, and a page set for each."""
    tree = tree_of(n_pages=1000)
    ids = list(range(2000))
    with Sequence(tree.pool, N_CTX) as prefix:
        while prefix.length < 2000:
            append(prefix, ids[prefix.length :][:500])
        one = prefix.n_pages
        forks = [prefix.fork() for _ in range(16)]
        for i, fork in enumerate(forks):
            append(fork, [i] * 40)
        used = tree.pool.n_pages - tree.pool.n_free
        assert used <= 1.1 * one + 16 * SHAPE.n_layers
        for i, fork in enumerate(forks):
            check(fork, ids + [i] * 40)
            fork.close()
        assert tree.pool.n_pages - tree.pool.n_free == one


# ---- through the model -----------------------------------------------------------------------------


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_llama_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", n_ctx=2400)


@pytest.fixture(scope="module")
def model(path):
    with edgellm.load(path, chat_template=CHATML, threads=1) as model:
        yield model


def count_prefill(model, call):
    """(result, tokens of the prompt that passes were run for)"""
    seen = []
    result = call(on_prefill=lambda p: seen.append(p.total))
    assert result.usage.prompt_tokens - result.context.reused == seen[-1]
    return result, seen[-1]


def test_the_second_turn_works_on_what_is_new_only(model):
    messages = [{"role": "system", "content": "the hello " * 40}, {"role": "user", "content": "once upon a time"}]
    options = {"max_tokens": 30, "temperature": 0}
    first, n = count_prefill(model, lambda **more: model.chat(messages, **options, **more))
    assert n == len(model.chat_ids(messages))
    longer = [*messages, first.message, {"role": "user", "content": "and then"}]
    ids = model.chat_ids(longer)
    held = [*model.chat_ids(messages), *first.token_ids[:-1]]  # the last token that was chosen was not run
    same = next((i for i, (a, b) in enumerate(zip(ids, held, strict=False)) if a != b), min(len(ids), len(held)))
    assert same > n, "the answer is there too"
    second, new = count_prefill(model, lambda **more: model.chat(longer, **options, **more))
    assert new == len(ids) - same and second.context.reused == same
    other = [messages[0], {"role": "user", "content": "hello"}]
    _, new = count_prefill(model, lambda **more: model.chat(other, **options, **more))
    assert new < 20, "the system message is there"
    again, new = count_prefill(model, lambda **more: model.chat(messages, **options, **more))
    assert new == 1 and again.token_ids == first.token_ids


def test_one_pool_for_several_sequences_changes_no_bit(path):
    """Interleaved passes over sequences of one pool, with forks, against each alone."""
    if not clib.available():
        pytest.skip("the compiled library was not built")
    rng = np.random.default_rng(5)
    texts = [rng.integers(3, 300, n).tolist() for n in (150, 90, 260)]
    with edgellm.load(path, threads=1, exact=True, backend="native") as model:
        alone = [model.logits(ids, first=len(ids) - 60) for ids in texts]
        engine = model._loaded.engine

        def interleaved(job):
            sequences = [engine.new_sequence() for _ in texts]
            out = [[] for _ in texts]
            for ids, seq in zip(texts, sequences, strict=True):
                engine.prefill(seq, ids[:-60], job)
            for i in range(60):
                for k, ids in enumerate(texts):
                    fork = sequences[k].fork()  # who is written to while both share the page copies it
                    kept, other = (fork, sequences[k]) if i % 3 == k else (sequences[k], fork)
                    token = ids[len(ids) - 60 + i]
                    engine.forward(other, [(token + 1) % 300], [], job.flag)
                    out[k].append(engine.forward(kept, [token], [0], job.flag)[0].copy())
                    other.close()
                    sequences[k] = kept
            for seq in sequences:
                seq.close()
            return [np.array(rows) for rows in out]

        for one, many in zip(alone, model._worker.call(interleaved), strict=True):
            assert np.array_equal(one, many)


def test_forks_of_a_long_prefix_in_a_model(path):
    with edgellm.load(path, threads=1) as model:
        engine, pool, ids = model._loaded.engine, model._loaded.pool, [3 + i * 7 % 250 for i in range(2000)]

        def work(job):
            seq = engine.new_sequence()
            engine.prefill(seq, ids, job)
            one, forks = seq.n_pages, [seq.fork() for _ in range(16)]
            for i, fork in enumerate(forks):
                engine.forward(fork, [3 + i], [], job.flag)
            used = pool.n_pages - pool.n_free
            for part in (*forks, seq):
                part.close()
            return one, used

        one, used = model._worker.call(work)
        assert used <= 1.1 * one + 16 * model.plan.kv.n_layers
        assert pool.n_free == pool.n_pages


def test_a_small_cache_forgets_and_still_answers(path):
    with edgellm.load(path, n_ctx=100, cache_bytes=2_000_000, threads=1) as model:
        pool = model._loaded.pool
        size = pool.page_bytes
        assert pool.n_pages == 2_000_000 // size
    with pytest.raises(edgellm.InvalidArgumentError, match="cache_bytes is 1000; a context of 100 tokens takes"):
        edgellm.load(path, n_ctx=100, cache_bytes=1000)
    for bad in (0, -1, True, 1.5, "1G"):
        with pytest.raises(edgellm.InvalidArgumentError, match="cache_bytes"):
            edgellm.load(path, n_ctx=100, cache_bytes=bad)
        with pytest.raises(edgellm.InvalidArgumentError, match="cache_bytes"):
            edgellm.load(path, cache_bytes=bad)
    budget = 40 * size
    with edgellm.load(path, cache_bytes=budget, threads=1) as model:
        assert model.n_ctx % 64 == 0 and model._loaded.pool.n_pages == 40
        prompts = [[1, 260 + i, *(260 + k % 150 for k in range(model.n_ctx - 60))] for i in range(6)]
        texts = [model.generate(ids, max_tokens=30, temperature=0).token_ids for ids in prompts]
        assert [model.generate(ids, max_tokens=30, temperature=0).token_ids for ids in prompts] == texts


def test_drop_turns_in_a_chat(path):
    """Whole oldest turns leave, the system message stays, and the next turns begin with the same tokens."""
    with edgellm.load(path, n_ctx=256, chat_template=CHATML, threads=1, overflow="drop-turns") as model:
        messages = [{"role": "system", "content": "the hello"}]
        reused, dropped = [], []
        for i in range(30):
            messages.append({"role": "user", "content": f"{i} once upon a time "})
            result = model.chat(messages, max_tokens=12, temperature=0, ignore_eos=True)
            messages.append({"role": "assistant", "content": "and the world"})
            reused.append(result.context.reused)
            dropped.append(result.context.dropped)
            assert result.context.used <= 256 and result.usage.prompt_tokens <= 256
        assert dropped[0] == 0 and dropped[-1] > 256 and dropped == sorted(dropped)
        fresh = sum(a < 40 for a in reused[12:])
        assert 0 < fresh < 9, "of 18 answers in a full window only some begin anew"
        policy = model._prompt.fit(messages[:-1], 256, Overflow("drop-turns"))
        text = model.detokenize(policy.ids)
        assert text.count("the hello<|im_end|>") == 1 and "29 once upon" in text and " 0 once" not in text
        assert policy.overflow.keep == len(model.chat_ids(messages[:1], add_generation_prompt=False))
        assert [policy.ids[n] for n in policy.turns()] == [model.tokenize("<|im_start|>", special=True)[-1]] * len(
            policy.turns()
        )
        with pytest.raises(edgellm.ContextOverflowError, match="holds 256"):
            model.chat([messages[0], {"role": "user", "content": "once upon " * 300}])


def test_drop_turns_while_an_answer_grows(path):
    with edgellm.load(path, n_ctx=256, chat_template=CHATML, backend="reference", overflow="drop-turns") as model:
        messages = [{"role": "system", "content": "the hello"}]
        for _ in range(4):
            messages += [{"role": "user", "content": "once upon a time"}, {"role": "assistant", "content": "the world"}]
        messages.append({"role": "user", "content": "and"})
        ids = model.chat_ids(messages)
        assert 128 < len(ids) < 256
        result = model.chat(messages, temperature=0, ignore_eos=True)
        last = model._prompt.turns(messages, ids)[-1]
        keep = len(model.chat_ids(messages[:1], add_generation_prompt=False))
        assert result.finish_reason == "length", "only the current turn is left"
        assert result.context.used == 256 and result.context.dropped == last - keep
        assert len(result.token_ids) == 256 - (len(ids) - (last - keep)) + 1
