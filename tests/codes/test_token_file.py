import contextlib
import dataclasses
import io
import os
import struct
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_model import tiny_config

from alit_hf import ALITModel
from alit_hf.codes.token_file import TokenFile, model_fingerprint


FINGERPRINT = bytes(range(1, 9))
HEADER_SIZE = 29


def make_file(num_tokens=32, codebook_size=4096, **fields):
    ids = np.random.default_rng(num_tokens).integers(0, codebook_size, num_tokens)
    return TokenFile(
        **{
            "token_ids": ids,
            "original_size": (640, 427),
            "grid_size": (16, 16),
            "codebook_size": codebook_size,
            "fingerprint": FINGERPRINT,
            **fields,
        }
    )


def with_checksum(body):
    return bytes(body) + struct.pack("<I", zlib.crc32(bytes(body)))


def declare(data, offset, layout, *values):
    """The file with other values in its header and a checksum that fits them."""
    body = bytearray(data[:-4])
    struct.pack_into(layout, body, offset, *values)
    return with_checksum(body)


def refusal(data):
    """The message with which a damaged file is refused, within a second of work and two megabytes."""
    tracemalloc.start()
    start = time.thread_time()
    try:
        with pytest.raises(ValueError, match=r"\.alit file|must be") as error:
            TokenFile.from_bytes(data)
        assert time.thread_time() - start < 1
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()
    return str(error.value)


class TestRoundTrip:
    def test_every_field_comes_back(self):
        file = make_file()
        again = TokenFile.from_bytes(file.to_bytes())
        assert again.token_ids.dtype == np.int64
        assert again.token_ids.tolist() == file.token_ids.tolist()
        assert again.original_size == (640, 427)
        assert again.grid_size == (16, 16)
        assert again.codebook_size == 4096
        assert again.fingerprint == FINGERPRINT
        assert again.num_tokens == 32
        assert again == file
        assert hash(again) == hash(file)

    @pytest.mark.parametrize(
        ("num_tokens", "codebook_size", "payload"),
        [(32, 4096, 48), (256, 4096, 384), (33, 4096, 50), (32, 4097, 52), (32, 2, 4), (1, 2, 1), (32, 65536, 64)],
    )
    def test_size_is_33_bytes_and_the_packed_ids(self, num_tokens, codebook_size, payload):
        assert len(make_file(num_tokens, codebook_size).to_bytes()) == 33 + payload

    def test_bytes_are_as_documented(self):
        """Files on people's disks must stay readable: this is the layout spelled out byte by byte."""
        file = make_file(
            token_ids=[0xABC, 0x123, 0xFFF], original_size=(0x10203, 0x405), grid_size=(16, 24), codebook_size=4096
        )
        body = (
            b"ALIT\x01\x03\x02\x01\x00\x05\x04\x00\x00\x10\x00\x18\x00\xff\x0f\x03\x00"
            + FINGERPRINT
            + b"\xab\xc1\x23\xff\xf0"
        )
        assert file.to_bytes() == with_checksum(body)

    @settings(deadline=None, max_examples=200)
    @given(data=st.data())
    def test_any_code(self, data):
        codebook_size = data.draw(st.integers(2, 65536) | st.sampled_from([2**n for n in range(1, 17)]))
        ids = data.draw(st.lists(st.integers(0, codebook_size - 1), min_size=1, max_size=80))
        file = TokenFile(
            token_ids=ids,
            original_size=data.draw(st.tuples(st.integers(1, 2**14), st.integers(1, 2**14))),
            grid_size=data.draw(st.tuples(st.integers(1, 256), st.integers(1, 256))),
            codebook_size=codebook_size,
            fingerprint=data.draw(st.binary(min_size=8, max_size=8)),
        )
        written = file.to_bytes()
        again = TokenFile.from_bytes(written)
        assert again.token_ids.tolist() == ids
        assert again == file
        assert again.to_bytes() == written

    @pytest.mark.parametrize("codebook_size", [2, 3, 4, 5, 1000, 4095, 4096, 4097, 65535, 65536])
    def test_smallest_and_largest_ids(self, codebook_size):
        ids = [0, codebook_size - 1, codebook_size - 1, 0, codebook_size // 2]
        assert TokenFile.from_bytes(
            make_file(token_ids=ids, codebook_size=codebook_size).to_bytes()
        ).token_ids.tolist() == (ids)

    def test_longest_code(self):
        file = make_file(65535, 65536)
        assert TokenFile.from_bytes(file.to_bytes()) == file

    def test_extreme_sides(self):
        file = make_file(original_size=(2**28, 1), grid_size=(1, 65535))
        again = TokenFile.from_bytes(file.to_bytes())
        assert (again.original_size, again.grid_size) == ((2**28, 1), (1, 65535))

    @pytest.mark.parametrize(
        "kind", [list, tuple, torch.tensor, np.uint16, lambda ids: torch.tensor(ids).to(torch.int32)]
    )
    def test_kinds_of_ids(self, kind):
        ids = [5, 0, 4095]
        file = make_file(token_ids=kind(ids))
        assert file == make_file(token_ids=np.array(ids))

    def test_ids_do_not_change_with_the_array_they_came_from(self):
        ids = np.array([1, 2, 3])
        file = make_file(token_ids=ids)
        ids[0] = 9
        assert file.token_ids.tolist() == [1, 2, 3]
        with pytest.raises(ValueError, match="read-only"):
            file.token_ids[0] = 9

    def test_other_contents_are_not_equal(self):
        assert make_file() != make_file(fingerprint=bytes(8))
        assert make_file() != make_file(original_size=(427, 640))
        assert make_file() != "ALIT"


class TestDamage:
    @pytest.mark.parametrize(("num_tokens", "codebook_size"), [(32, 4096), (5, 1000)])
    def test_truncation_at_every_length(self, num_tokens, codebook_size):
        data = make_file(num_tokens, codebook_size).to_bytes()
        for length in range(len(data)):
            assert "truncated" in refusal(data[:length]) or length < 4

    @pytest.mark.parametrize(("num_tokens", "codebook_size"), [(32, 4096), (5, 1000)])
    def test_every_flipped_bit(self, num_tokens, codebook_size):
        data = make_file(num_tokens, codebook_size).to_bytes()
        for bit in range(8 * len(data)):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            refusal(bytes(flipped))

    @settings(deadline=None, max_examples=300)
    @given(data=st.data())
    def test_any_other_damage(self, data):
        whole = make_file().to_bytes()
        damaged = bytearray(whole)
        start = data.draw(st.integers(0, len(whole)))
        stop = data.draw(st.integers(start, len(whole)))
        damaged[start:stop] = data.draw(st.binary(max_size=60))
        if bytes(damaged) != whole:
            refusal(bytes(damaged))

    @settings(deadline=None, max_examples=200)
    @given(st.binary(max_size=200), st.booleans())
    def test_noise(self, noise, behind_magic):
        refusal(b"ALIT\x01" + noise if behind_magic else noise)

    def test_no_declared_value_asks_for_more_than_an_error(self):
        """Headers that declare anything at all, with a checksum that fits."""
        data = make_file().to_bytes()
        for offset, layout, largest in [(5, "<I", 2**32), (9, "<I", 2**32), (13, "<H", 2**16), (15, "<H", 2**16)]:
            assert "must be" in refusal(declare(data, offset, layout, 0))
            assert "must be" in refusal(declare(data, offset, layout, largest - 1))
        for num_tokens in (0, 1, 30, 33, 65535):
            assert "does not have" in refusal(declare(data, 19, "<H", num_tokens))

    @settings(deadline=None, max_examples=300)
    @given(data=st.data())
    def test_any_header_that_fits_is_a_file_or_an_error(self, data):
        header = b"ALIT\x01" + data.draw(st.binary(min_size=HEADER_SIZE - 5, max_size=HEADER_SIZE - 5))
        largest_id, num_tokens = struct.unpack_from("<HH", header, 17)
        payload = (num_tokens * largest_id.bit_length() + 7) // 8
        whole = with_checksum(header + data.draw(st.sampled_from([b"\0", b"\x5a", b"\xff"])) * payload)
        try:
            file = TokenFile.from_bytes(whole)
        except ValueError:
            return
        assert file.to_bytes() == whole

    def test_no_tokens(self):
        header = make_file().to_bytes()[:HEADER_SIZE]
        assert "token_ids" in refusal(declare(with_checksum(header), 19, "<H", 0))

    def test_codebook_of_one_code(self):
        header = make_file().to_bytes()[:HEADER_SIZE]
        assert "codebook_size" in refusal(declare(with_checksum(header), 17, "<H", 0))

    def test_id_beyond_the_codebook(self):
        data = make_file(token_ids=[999, 1023], codebook_size=1024).to_bytes()
        for codebook_size in (1000, 1023):
            assert "in [0, " in refusal(declare(data, 17, "<H", codebook_size - 1))
        TokenFile.from_bytes(declare(data, 17, "<H", 1023))

    def test_bits_behind_the_last_token(self):
        data = make_file(token_ids=[1], codebook_size=4096).to_bytes()
        for bit in range(4):
            body = bytearray(data[:-4])
            body[-1] |= 1 << bit
            assert "not zero" in refusal(with_checksum(body))

    @pytest.mark.parametrize("version", [0, 2, 255])
    def test_other_version(self, version):
        assert f"version {version}" in refusal(declare(make_file().to_bytes(), 4, "<B", version))

    @pytest.mark.parametrize("tail", [b"\0", b"\n", b"ALIT", bytes(2**20)])
    def test_trailing_bytes(self, tail):
        assert "followed by" in refusal(make_file().to_bytes() + tail)

    def test_two_files_in_one(self):
        assert "followed by" in refusal(make_file().to_bytes() * 2)

    def test_foreign_files(self):
        picture, archive, pixels = io.BytesIO(), io.BytesIO(), io.BytesIO()
        Image.new("RGB", (64, 64), "red").save(picture, "PNG")
        Image.new("RGB", (64, 64), "red").save(archive, "JPEG")
        with zipfile.ZipFile(pixels, "w") as zipped:
            zipped.writestr("a.alit", make_file().to_bytes())
        for data in (picture.getvalue(), archive.getvalue(), pixels.getvalue(), b"", b"hello\n" * 50, bytes(5000)):
            assert "no .alit file" in refusal(data)


class TestArguments:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("token_ids", []),
            ("token_ids", [[1, 2]]),
            ("token_ids", np.int64(3)),
            ("token_ids", np.zeros(65536, dtype=np.int64)),
            ("token_ids", [-1, 3]),
            ("token_ids", [4096]),
            ("token_ids", [2**64]),
            ("token_ids", [1.0]),
            ("token_ids", [True]),
            ("codebook_size", 1),
            ("codebook_size", 65537),
            ("codebook_size", 4096.0),
            ("original_size", (0, 5)),
            ("original_size", (5, -1)),
            ("original_size", (2**32, 1)),
            ("original_size", (2**14, 2**14 + 1)),
            ("original_size", (5.5, 5)),
            ("original_size", (5, 5, 5)),
            ("original_size", 5),
            ("grid_size", (0, 16)),
            ("grid_size", (65536, 1)),
            ("grid_size", (256, 257)),
            ("grid_size", (True, 1)),
            ("fingerprint", b"short"),
            ("fingerprint", "01234567"),
        ],
    )
    def test_is_refused_by_name(self, field, value):
        with pytest.raises(ValueError, match=f"`{field}`"):
            make_file(**{field: value})

    def test_fields_cannot_be_set(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            make_file().grid_size = (8, 8)


class TestDisk:
    def test_save_and_load(self, tmp_path):
        file = make_file()
        file.save(tmp_path / "a.alit")
        assert (tmp_path / "a.alit").read_bytes() == file.to_bytes()
        assert TokenFile.load(tmp_path / "a.alit") == file
        assert TokenFile.load(str(tmp_path / "a.alit")) == file

    def test_load_from_what_is_open(self, tmp_path):
        file = make_file()
        file.save(tmp_path / "a.alit")
        with open(tmp_path / "a.alit", "rb") as stream:
            assert TokenFile.load(stream) == file
            assert not stream.closed
            with pytest.raises(ValueError, match=r"a\.alit: this is no \.alit file, it is empty"):
                TokenFile.load(stream)
        assert TokenFile.load(io.BytesIO(file.to_bytes())) == file

    def test_an_endless_stream_is_not_read_to_its_end(self):
        class Endless(io.BytesIO):
            name = "<stdin>"

            def read(self, size):
                assert 0 < size < 2**20
                return bytes(size)

        with pytest.raises(ValueError, match=r"<stdin>: this is no \.alit file"):
            TokenFile.load(Endless())

    def test_saving_replaces_and_leaves_nothing_else(self, tmp_path):
        make_file(64).save(tmp_path / "a.alit")
        make_file(32).save(tmp_path / "a.alit")
        assert TokenFile.load(tmp_path / "a.alit").num_tokens == 32
        assert os.listdir(tmp_path) == ["a.alit"]

    def test_saved_files_are_as_readable_as_others(self, tmp_path):
        (tmp_path / "other").write_bytes(b"")
        make_file().save(tmp_path / "a.alit")
        assert (tmp_path / "a.alit").stat().st_mode == (tmp_path / "other").stat().st_mode

    def test_failed_save_keeps_what_was_there(self, tmp_path, monkeypatch):
        make_file(64).save(tmp_path / "a.alit")

        def fail(*_):
            raise OSError("disk full")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            make_file(32).save(tmp_path / "a.alit")
        assert TokenFile.load(tmp_path / "a.alit").num_tokens == 64
        assert os.listdir(tmp_path) == ["a.alit"]

    def test_errors_name_the_file(self, tmp_path):
        (tmp_path / "holiday.alit").write_bytes(b"hello")
        with pytest.raises(ValueError, match=r"holiday\.alit: this is no \.alit file"):
            TokenFile.load(tmp_path / "holiday.alit")

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            TokenFile.load(tmp_path / "none.alit")

    @pytest.mark.parametrize("beginning", [b"", make_file(65535, 65536).to_bytes()], ids=["zeros", "whole file"])
    def test_huge_file_is_not_read(self, tmp_path, beginning):
        path = tmp_path / "huge.alit"
        with open(path, "wb") as file:
            file.write(beginning)
            file.truncate(2**40)
        tracemalloc.start()
        start = time.thread_time()
        try:
            with pytest.raises(ValueError, match=r"huge\.alit"):
                TokenFile.load(path)
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()
        assert time.thread_time() - start < 1


def tiny_model(**fields):
    torch.manual_seed(0)
    return ALITModel(tiny_config(**fields)).eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    tiny_model().save_pretrained(path)
    return path


class TestFingerprint:
    def test_is_eight_bytes_that_stay(self, checkpoint):
        fingerprint = model_fingerprint(tiny_model())
        assert isinstance(fingerprint, bytes)
        assert len(fingerprint) == 8
        assert fingerprint == model_fingerprint(tiny_model().train())
        assert fingerprint == model_fingerprint(ALITModel.from_pretrained(checkpoint))

    def test_bfloat16_load_equals_float32_load(self, checkpoint):
        full = ALITModel.from_pretrained(checkpoint, dtype=torch.float32)
        brief = ALITModel.from_pretrained(checkpoint, dtype=torch.bfloat16)
        assert brief.dtype == torch.bfloat16
        assert model_fingerprint(brief) == model_fingerprint(full)
        assert model_fingerprint(full.double()) == model_fingerprint(brief)

    @pytest.mark.parametrize("other", [torch.float32, torch.bfloat16, torch.float16])
    def test_float16_load_matches_every_load(self, checkpoint, other):
        half = ALITModel.from_pretrained(checkpoint, dtype=torch.float16)
        model = ALITModel.from_pretrained(checkpoint, dtype=other)
        make_file(codebook_size=64, fingerprint=model_fingerprint(half)).check_model(model)
        make_file(codebook_size=64, fingerprint=model_fingerprint(model)).check_model(half)

    def test_values_too_small_for_float16_keep_their_sign(self):
        model, half = tiny_model(), tiny_model()
        for each in (model, half):
            torch.nn.init.normal_(each.decoder.head.fc1.weight, std=1e-9, generator=torch.manual_seed(1))
        half.half()
        assert not half.decoder.head.fc1.weight.any()
        make_file(codebook_size=64, fingerprint=model_fingerprint(half)).check_model(model)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_other_weights_are_another_model(self, dtype):
        file = make_file(fingerprint=model_fingerprint(tiny_model().to(dtype)))
        other = tiny_model()
        # As one step of training would: everywhere a little.
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1e-3 * torch.randn_like(parameter))
        with pytest.raises(ValueError, match="another model"):
            file.check_model(other.to(dtype))

    @pytest.mark.parametrize("name", ["quantizer.codebook.weight", "base_tokenizer.model.decoder.conv_out.bias"])
    def test_one_changed_number_is_another_model(self, name):
        file = make_file(fingerprint=model_fingerprint(tiny_model()))
        other = tiny_model()
        with torch.no_grad():
            other.get_parameter(name).view(-1)[0] *= 1.01
            other.get_parameter(name).view(-1)[0] += 0.001
        with pytest.raises(ValueError, match="another model"):
            file.check_model(other)

    @pytest.mark.parametrize(
        "fields",
        [{"num_attention_heads": 2}, {"hidden_act": "relu"}, {"image_size": [16, 64]}, {"layer_norm_eps": 1e-3}],
    )
    def test_same_weights_decoded_otherwise_are_another_model(self, fields):
        model, other = tiny_model(), tiny_model(**fields)
        other.load_state_dict(model.state_dict())
        assert model_fingerprint(other) != model_fingerprint(model)

    @pytest.mark.parametrize("fields", [{"halting_threshold": 0.5}, {"attention_dropout": 0.1}])
    def test_what_decoding_does_not_read_makes_no_difference(self, fields):
        assert model_fingerprint(tiny_model(**fields)) == model_fingerprint(tiny_model())

    def test_a_grid_far_beyond_the_model_is_refused(self):
        model = tiny_model()
        for grid_size, fits in (((8, 8), True), ((32, 32), True), ((32, 33), False), ((256, 256), False)):
            tokens = TokenFile([1, 2, 3], (52, 24), grid_size, 64, model_fingerprint(model))
            with contextlib.nullcontext() if fits else pytest.raises(ValueError, match="at most 1024"):
                tokens.check_model(model)

    def test_a_codebook_of_another_size_is_refused(self):
        model = tiny_model()
        tokens = TokenFile([1, 2, 3], (52, 24), (8, 8), 65536, model_fingerprint(model))
        with pytest.raises(ValueError, match="a codebook of 65536 entries, this model's has 64"):
            tokens.check_model(model)

    def test_check_takes_a_fingerprint_for_the_model(self):
        make_file().check_model(FINGERPRINT)
        for wrong in (bytes(8), FINGERPRINT[::-1], FINGERPRINT[:7] + b"\0"):
            with pytest.raises(ValueError, match=f"{FINGERPRINT.hex()}, this model's is {wrong.hex()}"):
                make_file().check_model(wrong)
        with pytest.raises(ValueError, match="8 bytes"):
            make_file().check_model(b"")
