"""The published tables that need a GPU, as jobs of `experiments.reproduce_all`: command, memory, cores, order.

Memory is what the processes of a job peaked at on an H100 or an H200 (which tries larger kernels for convolutions),
with some room; a sweep divides it among its processes. What stands first is started first. Not here: memory
proofs, spoken requests, Whisper's own decoder.
"""

from tiny_align_jax.jobs import Job

_PUBLISHED = "published/whisper-base--smollm2-135m-instruct"
_SEEDS = 3


def get_jobs(spoken: str = "", sentences: str = "", base: str = "whisper-base") -> tuple[Job, ...]:
    """All jobs; those of synthetic speech only where its manifest and sentences are given.

    Args:
        spoken: manifest of `experiments.render_speech`.
        sentences: file of `experiments.write_sentences`.
        base: the projector that is personalised.
    """
    return (
        *_timings(),
        _job("features", "extract_features --config=configs/so762.py --noprogress", 24, 6),
        *_cross(),
        *(_synthetic(spoken, sentences) if spoken and sentences else ()),
        *_users(base),
        *_distortions(),
    )


def _job(name, command, gpu_gb, cores, *after, **more):
    return Job(name, f"-m experiments.{command}", gpu_gb, cores, after, **more)


def _timings():
    """Alone on the machine, before anything else."""
    torch = "--torch=eager,default,reduce-overhead,max-autotune,cuda-graph --torch_first --timeout_s=150"
    steps = f"benchmark --cases=embedlink,embedlink_ctc,next_token {torch} --out={{out}}/benchmark"
    rest = "benchmark --cases=decode,encoder,input,startup,scaling --torch=eager,default,reduce-overhead"
    quantised = "benchmark --cases=decode_quantised --size=llama1b --out={out}/benchmark_quantised"
    yield _job("steps", f"{steps} --keep", 70, 8, quiet="machine")
    yield _job(
        "rest", f"{rest} --torch_first --out={{out}}/benchmark_rest --keep", 70, 8, quiet="machine"
    )
    yield _job("quantised", quantised, 70, 8, quiet="machine")


def _cross():
    """Tables of docs/results.md; the race has its GPU to itself."""
    stage = "reproduce_cross --workdir={out}/cross --stage="
    yield _job("search", f"{stage}search --jobs=4", 40, 8, "features")
    yield _job("screen", f"{stage}screen --jobs=6", 70, 12, "features")
    yield _job("full", f"{stage}full --jobs=8", 60, 12, "search", "screen")
    yield _job("stages", f"{stage}stages --jobs=4", 60, 8, "full")
    yield _job("answers", f"{stage}answers --jobs=2", 16, 4, "features")
    yield _job("race", f"{stage}race", 60, 4, "features", quiet="gpu")


def _synthetic(spoken, sentences):
    """The best system with three seeds, and what synthetic speech adds against its amount."""
    config = "--config=configs/synthetic_pretraining.py:"
    corpus = (
        f"--config.mixture.dataset.jsonl.manifest={spoken} --config.vocabulary.texts={sentences}"
    )
    train = f"train --noprogress {config}mixture {corpus}"
    encode = (
        "--config.features.batch_size=64 --config.train.num_steps=0 --config.train.resident=never"
    )
    yield _job("encode_spoken", f"{train} {encode} --workdir={{out}}/encoded", 20, 6, "features")
    # Streamed: 17 GB of frames on the device leave no room for a second run.
    steps = "--config.train.num_steps=6000 --config.train.resident=never"
    for seed in range(_SEEDS):
        name = f"mixture_{seed}"
        workdir = f"--workdir={{out}}/{name}"
        seeded = f"{train} {steps} --config.seed={seed} {workdir}"
        yield _job(name, seeded, 12, 3, "encode_spoken")
        read = f"evaluate --noprogress {workdir} --reading=rescore"
        weights = f"--reading_file={_PUBLISHED}/reading.json"
        yield _job(f"read_{seed}", f"{read} {weights}", 24, 3, name)
    for kind in ("pretrain", "mixture"):
        sweep = f"sweep {config}{kind} {corpus} --sweep=amount --jobs=5 --score=heard"
        steps = "--config.train.num_steps=3000 --config.train.resident=never"
        amount = f"{sweep} {steps} --workdir={{out}}/amount_{kind}"
        yield _job(f"amount_{kind}", amount, 45, 8, "encode_spoken")


def _users(base):
    """Personalisation: the first phase in parts, the test speakers with what they chose, `embedlink` beside."""
    study = "personalize_study --workdir={out}/users/"
    grams = f"--ngram_texts={_PUBLISHED}/sentences.txt"
    encoder = "encoder_low_rank,encoder_both_low_rank,encoder_low_rank_16,encoder_norms"
    halves = "--dtype=bfloat16 --jobs_at_once=24"
    parts = {
        "projector": f"norms,speaker_vector,frames_affine,last_layer,whole {grams}",
        "encoder": f"{encoder} --nollm --steps_per_checkpoint=12 {halves}",
        "low_rank": "low_rank --nollm --noencoder",
    }
    for part, methods in parts.items():
        command = f"{study}{part} --dev_base={base} --methods={methods} --budget_s=240"
        yield _job(f"users_{part}", command, 36, 4, "features")
    chosen = ",".join(f"{{out}}/users/{part}" for part in parts)
    test = f"{study}test --base={base} --chosen={chosen} {grams} --num_best=16 {halves}"
    yield _job("users_test", test, 50, 4, *(f"users_{part}" for part in parts))
    bridge = {"positions": "none", "num_tokens": 16, "pooling": "window", "pool_stride": 8}
    keys = [f"--config.projector.bridgeformer.{key}={value}" for key, value in bridge.items()]
    paper = (
        "train --noprogress --config=configs/so762.py --config.objective.name=embedlink "
        f"--config.objective.embedlink.pad_weight=0.3 {' '.join(keys)}"
    )
    yield _job("paper", f"{paper} --workdir={{out}}/paper", 8, 3, "features")
    both = "--dev_base={out}/paper --base={out}/paper --methods=norms,speaker_vector,last_layer"
    beside = f"{study}paper {both} --nollm --noencoder --seeds=1 --budget_s=60"
    yield _job("users_paper", beside, 30, 4, "paper")


def _distortions():
    """Noise and rooms after training without augmentation, with masks, and on distorted speech."""
    train = "train --noprogress --config=configs/so762.py"
    kinds = {
        "plain": "--config.augment.time_masks=0 --config.augment.channel_mask_fraction=0",
        "masks": "",
        "noisy": "--config.features.variants=\"('pink:15','reverb:0.4')\" --config.features.too_long=skip",
    }
    for kind, flags in kinds.items():
        yield _job(kind, f"{train} {flags} --workdir={{out}}/{kind}", 12, 3, "features")
    runs = ",".join(f"{{out}}/{kind}" for kind in kinds)
    table = f"robustness --noprogress --workdir={runs} --limit=320 --out={{out}}/robustness"
    yield _job("robustness", table, 12, 4, *kinds)
