"""Methods of the KV cache against definitions written out by hand."""

from __future__ import annotations

import pytest
import torch

import vtc
from tests.families import batch, model_of

N = 30


def score(seed=0):
    return torch.rand(N, generator=torch.Generator().manual_seed(seed))


def test_h2o_keeps_heavy_hitters_and_recent_tokens():
    x, record = torch.zeros(N, 1), score()
    heavy = sorted(sorted(range(N), key=lambda i: -float(record[i]))[:8])
    assert vtc.select(vtc.H2O(keep=8), x, attention_record=record).anchor.tolist() == heavy
    both = vtc.select(vtc.H2O(keep=8, scope="all"), x, attention_record=record).anchor.tolist()
    assert both[4:] == [26, 27, 28, 29]
    assert both[:4] == sorted(sorted(range(26), key=lambda i: -float(record[i]))[:4])


def test_scissorhands_counts_votes():
    method = vtc.Scissorhands(keep=5, recent=2, scope="all")
    rows = torch.tensor([[[0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4]]])
    gain = method.gain(rows, torch.tensor([[3, 4]]))
    assert gain.tolist() == [[1.0, 0.0, 1.0, 1.0]]  # more than 1/3 for the first query, more than 1/4 for the second
    assert method.gain(torch.full((1, 1, 4), 0.25), torch.tensor([[4]])).tolist() == [[0.0] * 4]  # an even share
    chosen = vtc.select(method, torch.zeros(N, 1), attention_record=score()).anchor.tolist()
    assert chosen[3:] == [28, 29]


def test_streaming_keeps_the_ends():
    assert vtc.select(vtc.Streaming(keep=7), torch.zeros(N, 1)).anchor.tolist() == [0, 1, 2, 3, 27, 28, 29]
    assert vtc.select(vtc.Streaming(keep=3), torch.zeros(N, 1)).anchor.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: vtc.H2O(scope="text"), "scope='text' is not one of"),
        (lambda: vtc.H2O(positions="compact"), "cannot renumber"),
        (lambda: vtc.H2O(every=0), "every=0 is not a whole number of 1 or more: it is a number of decode steps"),
        (lambda: vtc.H2O(every=1.5), "every=1.5 is not a whole number"),  # type: ignore[arg-type]
        (lambda: vtc.H2O(recent=1.0), "recent=1.0 is not a number in"),
        (lambda: vtc.H2O(first=-1), "first=-1 is not a whole number of 0 or more"),
        (lambda: vtc.Scissorhands(history=0), "history=0"),
        (lambda: vtc.Streaming(sinks=-1), "sinks=-1 is not a whole number of 0 or more"),
    ],
)
def test_bad_options(build, says):
    with pytest.raises((ValueError, TypeError), match=says) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_the_record_is_the_attention_received():
    """What H2O hears equals the column sums of the softmax matrix that eager attention makes."""
    model, inputs = model_of("llava", "eager"), batch("llava", [[0]])
    with vtc.wrapped(model, vtc.H2O(keep=5)):
        model(**inputs, use_cache=True)
        evicted = {e.layer: set(e.slots[0].tolist()) for e in model._vtc_engine.trace.evictions}
    attentions = model(**inputs, output_attentions=True).attentions
    places = (inputs["input_ids"][0] == 2).nonzero().squeeze(1)
    for layer, attention in enumerate(attentions):
        received = attention[0].mean(0).sum(0)[places]
        kept = places[received.argsort(descending=True)[:5]].tolist()
        assert evicted[layer] == set(places.tolist()) - set(kept)


def test_every_n_steps_bounds_the_cache():
    model, inputs = model_of("llava"), batch("llava", [[0]])
    for method in (vtc.H2O(keep=12, scope="all", every=2), vtc.Streaming(keep=12, scope="all", every=2)):
        with vtc.wrapped(model, method):
            out = model.generate(**inputs, max_new_tokens=11, do_sample=False, return_dict_in_generate=True)
        held = [layer.keys.shape[2] for layer in out.past_key_values.layers]
        assert max(held) <= 12 + 1
        assert out.past_key_values.get_seq_length() == out.sequences.shape[1] - 1


def test_first_spares_earlier_layers():
    model, inputs = model_of("llava"), batch("llava", [[0]])
    length = inputs["input_ids"].shape[1]
    with vtc.wrapped(model, vtc.Streaming(keep=6, first=2)):
        cache = model(**inputs, use_cache=True).past_key_values
    assert [layer.keys.shape[2] for layer in cache.layers] == [length, length, length - 30]


def test_a_cache_method_needs_a_cache():
    model, inputs = model_of("llava"), batch("llava", [[0]])
    with vtc.wrapped(model, "h2o"), pytest.raises(ValueError, match="use_cache is False"):
        model(**inputs, use_cache=False)


def test_assisted_decoding_and_eviction_while_decoding_do_not_mix():
    model, inputs = model_of("llava"), batch("llava", [[0]])
    with (
        vtc.wrapped(model, vtc.H2O(keep=6, scope="all", every=1)),
        pytest.raises(ValueError, match="every=1 drops"),
    ):
        model.generate(**inputs, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3)


@pytest.mark.parametrize("method", [vtc.H2O(keep=10), vtc.Scissorhands(keep=10)])
def test_equal_records_leave_the_first_ones(method):
    chosen = vtc.select(method, torch.zeros(N, 1), attention_record=torch.ones(N)).anchor
    assert chosen.tolist() == list(range(10))
