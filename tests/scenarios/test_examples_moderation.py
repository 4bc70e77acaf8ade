"""The moderation example: its models do what its README says."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from inferline_stream.actuators.nvml import devices
from inferline_stream.dataplane.sample_files import read_arrivals, read_events
from inferline_stream.dataplane.topology_loader import load_topology

EXAMPLE = Path(__file__).parents[2] / "topologies/moderation"


@pytest.fixture(scope="module")
def stages():
    """The example's stages by name, constructed as a replica does it."""
    pipeline = load_topology(EXAMPLE)
    return {stage.name: stage.run() if isinstance(stage.run, type) else stage.run for stage in pipeline.stages}


@pytest.fixture(scope="module")
def posts(stages):
    import topology

    return [topology.Post(**json.loads(event)) for event in read_events(EXAMPLE / "posts.jsonl")]


def tagged(*texts):
    import topology

    return [topology.Tagged(text, "en") for text in texts]


def test_two_thirds_of_the_posts_are_english_and_the_rest_mostly_spanish(stages, posts):
    found = [tag.language for tag in stages["language"](posts)]
    assert 0.6 < found.count("en") / len(found) < 0.7
    assert 0.25 < found.count("es") / len(found) < 0.3


def test_an_insult_is_more_toxic_than_praise_and_batches_do_not_change_that(stages):
    insult, praise = tagged("you are a stupid bastard", "what a lovely morning, thank you")
    together = stages["toxicity"]([insult, praise])
    assert together[0] > 0.9
    assert together[1] < 0.1
    np.testing.assert_allclose(together, [*stages["toxicity"]([insult]), *stages["toxicity"]([praise])], atol=1e-12)


def test_a_batch_of_32_costs_the_toxicity_model_much_less_than_32_calls(stages, posts):
    batch = tagged(*(post.text for post in posts[:32]))

    def cpu_s(calls):
        best = np.inf
        for _ in range(5):
            start = time.process_time()
            for call in calls:
                stages["toxicity"](call)
            best = min(best, time.process_time() - start)
        return best

    assert cpu_s([[one] for one in batch]) > 4 * cpu_s([batch])  # about 26 times where nothing disturbs


def test_every_known_post_is_found_again_and_few_others_are(stages, posts):
    sample = posts[:100]
    found = []
    for start in range(0, len(sample), 20):
        found += stages["duplicate"](tagged(*(post.text for post in sample[start : start + 20])))
    known = [number % 5 == 0 for number in range(len(sample))]
    assert all(duplicate for duplicate, is_known in zip(found, known, strict=True) if is_known)
    assert sum(duplicate for duplicate, is_known in zip(found, known, strict=True) if not is_known) < 8


def test_a_post_that_says_the_same_in_other_words_is_a_duplicate(stages, posts):
    import sentences

    encode = sentences.SentenceEncoder()
    rain, same, other = encode(
        ["Piss off rain. Piss off hangover.", "Piss off rain! Piss off hangover!", posts[1].text]
    )
    assert rain @ same > 0.9
    assert rain @ other < 0.6


def test_the_fallback_of_the_duplicate_search_agrees_with_it_as_the_readme_says(stages, posts):
    import topology

    sample = tagged(*(post.text for post in posts[:200]))
    batches = [sample[start : start + 20] for start in range(0, len(sample), 20)]
    fallback = topology.TrigramSearch()
    by_letters = [found for batch in batches for found in fallback(batch)]
    by_meaning = [found for batch in batches for found in stages["duplicate"](batch)]
    agreeing = [mine == other for mine, other in zip(by_letters, by_meaning, strict=True)]
    assert all(by_letters[number] for number in range(0, len(sample), topology.KNOWN_EVERY)), "known posts"
    assert sum(agreeing) / len(agreeing) > 0.98
    assert fallback(tagged(f"  {posts[5].text.upper()} ", posts[5].text + "!!")) == [True, True]
    assert fallback(tagged("", "ab", "a thing that nobody says in any of these posts")) == [False] * 3


@pytest.mark.gpu
def test_embeddings_on_a_gpu_say_the_same_as_on_a_processor(stages, posts, monkeypatch):
    import sentences

    texts = [post.text for post in posts[:8]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    processor = sentences.SentenceEncoder()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices()[0].uuid)
    gpu = sentences.SentenceEncoder()
    assert (processor.provider, gpu.provider) == ("CPUExecutionProvider", "CUDAExecutionProvider")
    assert ((processor(texts) * gpu(texts)).sum(axis=1) > 0.99).all()


def test_word_pieces_are_those_of_the_reference_tokenizer(stages):
    import sentences

    tokens = sentences.WordPiece(EXAMPLE / "vocabulary.txt")
    # Numbers given by Hugging Face's `tokenizers` 0.23.3 with the model's own tokenizer.json.
    assert tokens("Don't panic: naïve £5 coffee_shop 你好!") == [
        101,
        2123,
        1005,
        1056,
        6634,
        1024,
        15743,
        27813,
        4157,
        1035,
        4497,
        100,
        100,
        999,
        102,
    ]
    assert tokens("a" * 101) == [101, 100, 102]
    assert len(tokens("word " * 500)) == sentences.MAX_TOKENS


def test_a_verdict_names_the_first_thing_that_is_wrong(stages):
    import topology

    (post,) = tagged("text")
    cases = [(0.99, True, False), (0.1, True, False), (None, False, True), (0.1, False, True)]
    verdicts = stages["verdict"]([topology.Findings(post, toxicity, duplicate) for toxicity, duplicate, _ in cases])
    assert [v.allowed for v in verdicts] == [allowed for _, _, allowed in cases]
    assert verdicts[0].reason.startswith("offensive")
    assert verdicts[1].reason == "posted before"


def test_the_live_arrivals_pass_those_that_the_planner_knows():
    planned, live = (read_arrivals(EXAMPLE / name) for name in ("arrivals.csv", "live.csv"))

    def busiest(trace):
        return max(len(trace.window(t, t + 20)) for t in np.arange(0, trace.duration_s, 5))

    assert busiest(live) > 1.25 * busiest(planned)
