"""CHAT files, their media and the corpora's layouts; nothing is dropped without a name."""

import dataclasses
import os
import pathlib

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from tiny_align_jax.data.audio import read_audio
from tiny_align_jax.datasets import _chat, talkbank
from tiny_align_jax.types import ConfigError, DataError

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
HEADER = """@UTF8
@Begin
@Languages:\teng
@Participants:\t{people}
@ID:\teng|made|PAR|67;06.|female|Control||Participant||28|
@ID:\teng|made|INV|||||Investigator|||
@Media:\t{media}
"""


def chat(*tiers, people="PAR Participant, INV Investigator", media="talk, audio", end="@End"):
    return HEADER.format(people=people, media=media) + "\n".join([*tiers, end]) + "\n"


def tier(words, start, end, code="PAR"):
    return f"*{code}:\t{words} \x15{start}_{end}\x15"


def put(folder, name, text, audio=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.cha").write_text(text, encoding="utf-8")
    if audio:
        put_audio(folder / audio)


def put_audio(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(np.arange(16000) / 8), 16000)


def scan(root, split="all", **options):
    return talkbank.scan(talkbank.Config(root=str(root), **options), split)


def texts(found):
    return [u.text for u in found.utterances]


# --- a made-up interview with real sound (see fixtures/talkbank/README.md)


def test_the_made_up_interview():
    found = scan(FIXTURES / "talkbank")
    assert texts(found) == [
        "well um the boy is is on a stool",
        "he's tak he's taking cookies out of the cookie jar",
        "and the water is running over the floor",
    ]
    first = found.utterances[0]
    assert (first.start_s, first.end_s) == (2.162, 4.570)
    assert (first.utterance_id, first.speaker_id) == ("interview-PAR-00010", "interview-PAR")
    assert first.age == pytest.approx(67.5, abs=0.05) and first.sex == "f"
    assert first.extra == {
        "group": "Control", "mmse": "28", "role": "Participant", "corpus": "madeup",
    }  # fmt: skip
    assert first.audio_path.endswith("Interview_recording.ogg")
    for utterance in found.utterances:
        waveform_S = read_audio(utterance.audio_path, utterance.start_s, utterance.end_s)
        assert len(waveform_S) / 16000 == pytest.approx(
            utterance.end_s - utterance.start_s, abs=0.01
        )
    reasons = {name.rpartition(":")[2]: reason for name, reason in found.skipped.items()}
    assert reasons == {
        "16": "unintelligible (xxx, yyy or www)",
        "18": "overlap (with INV, line 17, by 400 ms)",
    }


def test_choices(tmp_path):
    root = FIXTURES / "talkbank"
    assert "she doesn't" in texts(scan(root, drop_unintelligible=False))
    assert "no no" in texts(scan(root, max_overlap_s=0.5))
    assert texts(scan(root, keep_fillers=False))[0] == "well the boy is is on a stool"
    assert texts(scan(root, participants=("INV",))) == ["can you tell me what you see", "mhm"]
    assert len(texts(scan(root, participants=("*",)))) == 5


def test_skips_are_counted_in_the_log(caplog):
    caplog.set_level("INFO")
    assert len(talkbank.read(talkbank.Config(root=str(FIXTURES / "talkbank")), "all")) == 3
    assert "skipped 1: overlap" in caplog.text and "skipped 1: unintelligible" in caplog.text


# --- time marks


@pytest.mark.parametrize(
    "text, words, start, end",
    [
        ("hello . \x15125_475\x15", "hello .", 125, 475),
        ("hello . 125_475", "hello .", 125, 475),
        ("hello . \x15125_475-\x15", "hello .", 125, 475),
        ('hello . \x15%snd:"old_tape"_125_475\x15', "hello .", 125, 475),
        ("a \x150_100\x15 b \x15100_250\x15", "a   b", 0, 250),
        ("choo_choo .", "choo_choo .", None, None),
        ("", "", None, None),
        ("5_6", "", 5, 6),
    ],
)
def test_time_marks(text, words, start, end):
    assert _chat.time_marks(text) == (words, start, end)


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.booleans())
def test_any_time_mark_comes_back(start, end, has_control_character):
    control = "\x15" if has_control_character else ""
    assert _chat.time_marks(f"a b . {control}{start}_{end}{control}") == ("a b .", start, end)


@pytest.mark.parametrize(
    "age, years",
    [("6;03.15", 6 + 3 / 12 + 15 / 365.25), ("67;", 67), ("67", 67), ("2;06.", 2.5), ("2;6", 2.5)],
)
def test_ages(age, years):
    assert _chat.age_in_years(age) == pytest.approx(years)


def test_bad_ages():
    assert _chat.age_in_years("old") is None and _chat.age_in_years("6,3") is None


def test_lengths_and_missing_marks_are_named(tmp_path):
    tiers = [
        tier("fine", 0, 300),
        tier("zero", 400, 400),
        tier("back", 500, 450),
        "*PAR:\tno mark .",
    ]
    put(tmp_path, "talk", chat(*tiers), "talk.wav")
    found = scan(tmp_path)
    assert texts(found) == ["fine"]
    assert list(found.skipped.values()) == [
        "zero or negative length (400_400)",
        "zero or negative length (500_450)",
        "no time mark",
    ]


def test_overlap_counts_only_between_speakers_and_beyond_the_tolerance(tmp_path):
    tiers = [
        tier("one", 0, 300), tier("two", 250, 500), tier("ask", 480, 600, "INV"),
        tier("three", 590, 800), tier("four", 700, 900), tier("long question", 750, 950, "INV"),
    ]  # fmt: skip
    put(tmp_path, "talk", chat(*tiers), "talk.wav")
    assert texts(scan(tmp_path)) == ["one", "two", "three"]
    assert texts(scan(tmp_path, max_overlap_s=0.0)) == ["one"]
    assert len(texts(scan(tmp_path, max_overlap_s=1.0))) == 4


# --- media


def test_the_media_name_goes_first_then_the_transcripts(tmp_path):
    put(tmp_path, "a", chat(tier("one", 0, 300), media="Tape_7, audio"), "tape_7.MP3")
    put(tmp_path, "b", chat(tier("two", 0, 300), media="lost, video"), "b.flac")
    put(tmp_path, "c", chat(tier("three", 0, 300), media="c, audio, missing"), "c.wav")
    put(tmp_path, "d", chat(tier("four", 0, 300), media="gone, audio"))
    put(tmp_path, "e", chat(tier("five", 0, 300), media="film, video"))
    found = scan(tmp_path)
    assert [pathlib.Path(u.audio_path).name for u in found.utterances] == ["tape_7.MP3", "b.flac"]
    reasons = {pathlib.Path(name).name: reason for name, reason in found.skipped.items()}
    assert reasons["c.cha"] == "@Media says the recording is missing"
    assert reasons["d.cha"].startswith("no recording (looked for: gone{.wav,")
    assert reasons["e.cha"].startswith("no recording (extract the audio of the video")


def test_media_in_another_tree(tmp_path):
    for folder in ("x", "y"):
        put(tmp_path / "text" / folder, "talk", chat(tier(folder, 0, 300)))
        put_audio(tmp_path / "sound" / folder / "talk.wav")
    found = scan(tmp_path / "text", media=str(tmp_path / "sound"))
    assert [u.audio_path for u in found.utterances] == [
        str(tmp_path / "sound" / folder / "talk.wav") for folder in ("x", "y")
    ]
    assert [u.speaker_id for u in found.utterances] == ["x/talk-PAR", "y/talk-PAR"]
    put(tmp_path / "text", "talk", chat(tier("which", 0, 300)))
    found = scan(tmp_path / "text", media=str(tmp_path / "sound"))
    (reason,) = found.skipped.values()
    assert reason.startswith("several recordings of that name (")
    with pytest.raises(DataError, match="media"):
        scan(tmp_path / "text", media=str(tmp_path / "none"))


def test_wav_is_preferred(tmp_path):
    put(tmp_path, "talk", chat(tier("one", 0, 300)), "talk.mp3")
    put_audio(tmp_path / "talk.wav")
    assert scan(tmp_path).utterances[0].audio_path.endswith("talk.wav")


def test_transcripts_without_marks_are_kept_for_an_aligner(tmp_path):
    tiers = ["*PAR:\tfirst words .", "*INV:\tand ?", "*PAR:\txxx .", "*PAR:\tlast words ."]
    put(tmp_path, "a", chat(*tiers, media="a, audio, unlinked"), "a.wav")
    put(tmp_path, "b", chat(tier("timed", 0, 300), media="b, audio"), "b.wav")
    found = scan(tmp_path)
    assert texts(found) == ["timed"]
    (untimed,) = found.untimed
    assert untimed.audio_path.endswith("a.wav")
    assert [u.text for u in untimed.utterances] == ["first words", "and", "last words"]
    assert [(u.start_s, u.end_s) for u in untimed.utterances] == [(0.0, None)] * 3
    chosen = [u.text for u in untimed.utterances if u.utterance_id in untimed.chosen]
    assert chosen == ["first words", "last words"]
    assert found.skipped[str(tmp_path / "a.cha")] == "no time marks (2 tiers to be aligned)"


# --- speakers and splits


def test_several_transcripts_of_one_person(tmp_path):
    for name in ("017-0", "017-1", "021-0"):
        put(
            tmp_path / "cookie",
            name,
            chat(tier("hi", 0, 300), media=f"{name}, audio"),
            f"{name}.wav",
        )
    found = scan(tmp_path, speaker_regex=r"(\d+)-\d$")
    assert [u.speaker_id for u in found.utterances] == ["017-PAR", "017-PAR", "021-PAR"]
    assert len({u.utterance_id for u in found.utterances}) == 3
    for pattern in ("(", r"\d+", r"(\d)(\d)"):
        with pytest.raises(ConfigError, match="speaker_regex"):
            scan(tmp_path, speaker_regex=pattern)


def test_splits_of_a_folder(tmp_path):
    put(tmp_path / "train", "a", chat(tier("one", 0, 300), media="a, audio"), "a.wav")
    put(tmp_path / "test", "b", chat(tier("two", 0, 300), media="b, audio"), "b.wav")
    assert texts(scan(tmp_path, "train")) == ["one"]
    assert texts(scan(tmp_path, "test")) == ["two"]
    assert texts(scan(tmp_path)) == ["two", "one"]
    with pytest.raises(DataError, match="'validation'"):
        scan(tmp_path, "validation")
    with pytest.raises(ConfigError, match="'tree'"):
        scan(tmp_path, layout="tree")


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match=r"talkbank\.org"):
        scan(tmp_path / "none")
    with pytest.raises(DataError, match=r"no \.cha file"):
        scan(tmp_path)
    put(tmp_path, "talk", chat(tier("xxx", 0, 300)), "talk.wav")
    with pytest.raises(DataError, match=r"no usable utterance.*\n.*unintelligible"):
        talkbank.read(talkbank.Config(root=str(tmp_path)), "all")


# --- malformed files

MALFORMED = [
    (chat("*PAR\tno colon"), 8, "expected '*CODE:<TAB>words'"),
    (chat("what is this"), 8, "expected '@', '*', '%' or a TAB first"),
    (chat(tier("hi", 0, 9, "XYZ")), 8, "speaker 'XYZ' is not in @Participants"),
    (chat("*PAR:\thi \x15zero_9\x15"), 8, "time mark that is not start_end"),
    (chat(tier("<open", 0, 300)), 8, "'<' without '>'"),
    (chat(tier("a", 0, 300), tier("close>", 300, 600)), 9, "'>' without '<'"),
    (chat(tier("fine", 0, 300), end=""), 0, "there is no @End (cut off?)"),
    (chat().replace("@Begin\n", ""), 0, "there is no @Begin (not a CHAT file?)"),
    (chat(people="PAR"), 4, "@Participants needs"),
    (chat().replace("67;06.", "old"), 5, "age 'old' of PAR"),
    (chat().replace("female", "woman"), 5, "sex 'woman' of PAR"),
    (chat().replace("|Control||Participant||28|", "|"), 5, "@ID needs 10 fields"),
    (chat(media="talk"), 7, "@Media needs"),
]


@pytest.mark.parametrize("content, line, message", MALFORMED)
def test_a_malformed_file_is_named_with_its_line(tmp_path, content, line, message):
    put(tmp_path, "talk", content, "talk.wav")
    with pytest.raises(DataError) as caught:
        scan(tmp_path)
    place = f"talk.cha:{line}: " if line else "talk.cha: "
    assert place + message in str(caught.value)


def test_all_malformed_files_are_listed(tmp_path):
    for i, (content, _, _) in enumerate(MALFORMED):
        put(tmp_path, f"talk{i}", content, "talk.wav")
    with pytest.raises(DataError) as caught:
        scan(tmp_path)
    for i, (_, _, message) in enumerate(MALFORMED):
        assert f"talk{i}.cha" in str(caught.value) and message in str(caught.value)


def test_bytes_that_are_not_utf8(tmp_path):
    put(tmp_path, "talk", chat(tier("fine", 0, 300)), "talk.wav")
    path = tmp_path / "talk.cha"
    path.write_bytes(path.read_bytes().replace(b"fine", b"caf\xe9"))
    with pytest.raises(DataError, match=r"talk\.cha:8: not UTF-8"):
        scan(tmp_path)


def test_a_byte_order_mark_and_windows_line_ends(tmp_path):
    text = chat("*PAR:\tone\n\ttwo\n\tthree \x150_300\x15", "%mor:\tdet|one\n\tdet|two")
    put(tmp_path, "talk", "\ufeff" + text.replace("\n", "\r\n"), "talk.wav")
    assert texts(scan(tmp_path)) == ["one two three"]


# --- ADReSS-2020


def adress(root, nested):
    """Both unpacked shapes: everything in one folder, or one folder an archive."""
    base = {
        split: root / f"ADReSS-IS2020-{split}" / "ADReSS-IS2020-data" / split
        if nested
        else root / split
        for split in ("train", "test")
    }
    for group, name in (("cc", "S001"), ("cd", "S079")):
        put(base["train"] / "transcription" / group, name, chat(tier(f"{group} words", 0, 300),
            media=f"{name}, audio").replace("67;06.|female|Control||Participant||28", "||||Participant||"))  # fmt: skip
        put_audio(base["train"] / "Full_wave_enhanced_audio" / group / f"{name}.wav")
    put(base["test"] / "transcription", "S160", chat(tier("test words", 0, 300)))
    put_audio(base["test"] / "Full_wave_enhanced_audio" / "S160.wav")
    header = "ID   ; age ; gender ; mmse \n"
    (base["train"] / "cc_meta_data.txt").write_text(header + "S001 ; 74 ; male ; 30 \n")
    (base["train"] / "cd_meta_data.txt").write_text(header + "S079 ; 61.5 ; female ; NA \n\n")
    (base["test"] / "meta_data.txt").write_text("ID;age;gender;Label;mmse\nS160;70;1;1;19\n")
    return base


@pytest.mark.parametrize("nested", [False, True])
def test_adress(tmp_path, nested):
    base = adress(tmp_path, nested)
    control, case = scan(tmp_path, "train", layout="adress2020").utterances
    assert (control.utterance_id, control.text) == ("train/cc/S001-PAR-00008", "cc words")
    assert (control.age, control.sex) == (74.0, "m")
    assert control.extra["group"] == "cc" and control.extra["mmse"] == "30"
    assert (case.age, case.sex, case.extra["group"]) == (61.5, "f", "cd")
    assert "mmse" not in case.extra
    wav = base["train"] / "Full_wave_enhanced_audio" / "cc" / "S001.wav"
    assert control.audio_path == str(wav)
    (test,) = scan(tmp_path, "test", layout="adress2020").utterances
    assert (test.text, test.speaker_id, test.extra["group"]) == (
        "test words",
        "test/S160-PAR",
        "cd",
    )
    # What the transcript itself says of its speaker goes before the table.
    assert test.age == pytest.approx(67.5, abs=0.01) and test.extra["mmse"] == "19"
    assert len(scan(tmp_path, "all", layout="adress2020").utterances) == 3


def test_adress_as_one_archive_folder(tmp_path):
    adress(tmp_path / "ADReSS-IS2020-data", nested=False)
    assert len(scan(tmp_path, "all", layout="adress2020").utterances) == 3


def test_adress_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no ADReSS-2020 train set; looked for"):
        scan(tmp_path, "train", layout="adress2020")


@pytest.mark.parametrize(
    "row, message",
    [
        ("S002 ; 74", "2 field"),
        ("S002 ; x ; male ; 3", "age 'x'"),
        ("S002 ; 7 ; z ; 3", "gender 'z'"),
    ],
)
def test_adress_tables_that_are_malformed(tmp_path, row, message):
    base = adress(tmp_path, nested=False)
    with open(base["train"] / "cc_meta_data.txt", "a") as file:
        file.write(row + "\n")
    with pytest.raises(DataError, match=r"cc_meta_data\.txt:3: ") as caught:
        scan(tmp_path, "train", layout="adress2020")
    assert message in str(caught.value)


# --- a real pair


@pytest.fixture
def real_pair():
    data = os.environ.get("TINY_ALIGN_DATA")
    root = pathlib.Path(data or "none") / "chat"
    if not (root / "test.cha").is_file():
        pytest.skip("TINY_ALIGN_DATA names no folder with chat/test.cha (TalkBank's batchalign2)")
    return root


@pytest.mark.data
def test_the_real_pair(real_pair):
    found = scan(real_pair)
    assert len(found.utterances) == 13 and not found.skipped
    assert found.utterances[10].text == "um i like i like i like beans"
    assert found.utterances[8].text == "but um here's some retracing"
    for utterance in found.utterances:
        waveform_S = read_audio(utterance.audio_path, utterance.start_s, utterance.end_s)
        assert len(waveform_S) / 16000 == pytest.approx(
            utterance.end_s - utterance.start_s, abs=0.01
        )


@pytest.mark.data
def test_the_real_pair_agrees_with_pylangacq(real_pair):
    pylangacq = pytest.importorskip("pylangacq")
    reference = pylangacq.read_chat(str(real_pair / "test.cha")).utterances()
    ours = scan(real_pair).utterances
    for u, r in zip(ours, reference, strict=True):
        assert (round(u.start_s * 1000), round(u.end_s * 1000)) == r.time_marks
        assert u.text.split() == [w for w in r.audible.split() if w not in (".", "?", "!")]


def test_the_made_up_interview_agrees_with_pylangacq():
    pylangacq = pytest.importorskip("pylangacq")
    path = FIXTURES / "talkbank" / "interview.cha"
    reference = {r.time_marks: r for r in pylangacq.read_chat(str(path), strict=False).utterances()}
    config = {"participants": ("*",), "drop_unintelligible": False, "max_overlap_s": 9.0}
    ours = scan(path.parent, **config).utterances
    assert len(ours) == len(reference) == 8
    for utterance in ours:
        marks = (round(utterance.start_s * 1000), round(utterance.end_s * 1000))
        assert reference[marks].participant == utterance.utterance_id.split("-")[1]


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        talkbank.Config().root = "x"
