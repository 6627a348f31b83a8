"""Compiling and exporting: whole graphs, batches of any size, the same results."""

import pytest
import torch
from tiny_config import tiny_images, tiny_model
from torch import nn

from alit_hf import ALITModel


two_variants = pytest.mark.parametrize(("base", "quantize"), [("vqgan", True), ("kl", False)])
# From 64 on, diffusers' upsampling takes another path.
BATCH = torch.export.Dim("batch", min=1, max=63)


class Encoder(nn.Module):
    """Pixels to codes of 6 tokens: ids, or latents where these are continuous."""

    def __init__(self, model: ALITModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        code = self.model.encode(pixel_values, num_tokens=6)
        return code.token_ids if self.model.config.quantize else code.latents


class Decoder(nn.Module):
    """Codes of one length to pixels."""

    def __init__(self, model: ALITModel):
        super().__init__()
        self.model = model

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        name = "token_ids" if self.model.config.quantize else "latents"
        return self.model.decode(**{name: codes}).pixel_values


class Features(nn.Module):
    """Pixels to what `forward` gives, as a tuple."""

    def __init__(self, model: ALITModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.model(pixel_values, num_tokens=6).to_tuple()


@pytest.fixture(autouse=True)
def without_gradients():
    torch.compiler.reset()
    with torch.no_grad():
        yield


def parts_and_inputs(base: str, quantize: bool) -> list[tuple[nn.Module, torch.Tensor]]:
    model, pixel_values = tiny_model(base, quantize, num_encoder_layers=1), tiny_images(5)
    encoder = Encoder(model)
    return [(encoder, pixel_values), (Decoder(model), encoder(pixel_values)), (Features(model), pixel_values)]


@pytest.mark.parametrize(("base", "quantize"), [("vqgan", True), pytest.param("kl", False, marks=pytest.mark.slow)])
def test_whole_graphs(base, quantize):
    for part, inputs in parts_and_inputs(base, quantize):
        compiled = torch.compile(part, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(inputs), part(inputs), atol=1e-4, rtol=0)


def test_a_given_length_takes_the_beginning_of_padded_codes():
    model = tiny_model()
    code = model.encode(tiny_images(2), num_tokens=6)
    padded = torch.cat([code.token_ids, torch.full((2, 3), -1)], dim=1)
    decode = torch.compile(model.decode, fullgraph=True, backend="eager")
    expected = model.decode(code.token_ids).pixel_values
    torch.testing.assert_close(decode(padded, num_tokens=6).pixel_values, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(decode(latents=code.latents, num_tokens=6).pixel_values, expected, atol=1e-4, rtol=0)


def test_values_are_checked_when_the_graph_runs():
    model = tiny_model()
    encoder, decoder, features = (
        torch.compile(part(model), fullgraph=True, backend="eager") for part in (Encoder, Decoder, Features)
    )
    pixel_values = tiny_images(2)
    codes = encoder(pixel_values)
    for wrong in (pixel_values * float("nan"), pixel_values + 0.5):
        for part in (encoder, features):
            with pytest.raises(RuntimeError, match=r"`pixel_values` must be finite and in \[0, 1\]"):
                part(wrong)
    for wrong in (codes + 64, torch.cat([codes[:, :3], torch.full((2, 3), -1)], dim=1)):
        with pytest.raises(RuntimeError, match=r"`token_ids` must be 6 ids in \[0, 64\)"):
            decoder(wrong)


class DecoderOf(nn.Module):
    """Ids to pixels, of a length that is given."""

    def __init__(self, model: ALITModel, num_tokens: int):
        super().__init__()
        self.model, self.num_tokens = model, num_tokens

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self.model.decode(token_ids, num_tokens=self.num_tokens).pixel_values


def test_lengths_that_do_not_exist_are_refused_while_tracing():
    codes = torch.zeros(2, 6, dtype=torch.long)
    for num_tokens, message in ((4, "`num_tokens` is 4, it must be a multiple of 3"), (9, "the codes have 6 tokens")):
        with pytest.raises(ValueError, match=message):
            torch.export.export(DecoderOf(tiny_model(), num_tokens), (codes,))


@two_variants
def test_export_with_a_batch_of_any_size(base, quantize):
    for part, inputs in parts_and_inputs(base, quantize):
        exported = torch.export.export(part, (inputs[:2],), dynamic_shapes=({0: BATCH},)).module()
        for batch in (inputs, inputs[:1]):
            torch.testing.assert_close(exported(batch), part(batch), atol=1e-4, rtol=0)


def test_the_model_itself_exports():
    model = tiny_model()
    exported = torch.export.export(model, (tiny_images(2),), dynamic_shapes={"pixel_values": {0: BATCH}}).module()
    output, expected = exported(tiny_images(3)), model(tiny_images(3))
    assert torch.equal(output.token_ids, expected.token_ids)
    torch.testing.assert_close(output.reconstruction, expected.reconstruction, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
@two_variants
def test_onnx(tmp_path, base, quantize):
    import onnxruntime

    for part, inputs in parts_and_inputs(base, quantize)[:2]:
        file = tmp_path / f"{type(part).__name__}.onnx"
        torch.onnx.export(part, (inputs[:2],), file, dynamo=True, dynamic_shapes=({0: BATCH},))
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        for batch in (inputs, inputs[:1]):
            (found,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
            torch.testing.assert_close(torch.from_numpy(found), part(batch), atol=1e-4, rtol=0)
