"""The plain network of a finished run, without its branches, as a file for other programs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from dks.config.errors import RequestError
from dks.config.schema import Config
from dks.models import build_network
from dks.models.weights import load_into, load_state_dict, run_input, run_network
from dks.runs.states import look_up
from dks.runs.terminal import explain

# of reloaded logits, relative to the largest: other programs add up in another order
TOLERANCE = 1e-5


class Format(str, Enum):
    """What is written."""

    safetensors = "safetensors"  # the weights, under the names of the plain backbone
    onnx = "onnx"  # for ONNX Runtime and others
    program = "program"  # for torch.export.load


SUFFIXES = {Format.safetensors: ".safetensors", Format.onnx: ".onnx", Format.program: ".pt2"}


def export(
    runs_dir: str, cell_id: str, form: Format, output: str | None = None, force: bool = False
) -> Path:
    """Write the plain network of a finished run, then load the file and compare its logits on a
    random batch.

    Its input is (N, 3, H, W), float32, of the size that the run was tested at, and normalised: the
    mean and the standard deviation of the channels are in the file's metadata beside `cell_id`,
    `backbone` and `num_classes`, each as a string of JSON. Its output is the logits (N, K) of c1.
    The file appears as a whole, or not at all.

    Args:
        output: the file; None: CELL_ID with the format's suffix, in the current folder.
        force: replace the file if there is one.

    Raises:
        RequestError: there is no such finished run, only its data tells how its images were
            normalised and it is not there any more, the file exists or cannot be written, or a
            package is missing.
        RuntimeError: the file that was written gives other logits.
    """
    path = Path(output or f"{cell_id}{SUFFIXES[form]}")
    if path.suffix != SUFFIXES[form]:
        raise RequestError(
            f"--output {path}: a file of --format {form.value} ends in {SUFFIXES[form]}"
        )
    if not path.parent.is_dir():
        raise RequestError(f"--output {path}: there is no folder {path.parent}")
    _refuse_existing(path, force)
    if form is Format.onnx:
        _require_onnx()
    config, supervised = run_network(runs_dir, cell_id)
    network = supervised.strip().eval()
    own = run_input(config)
    _, record = look_up(runs_dir, cell_id)
    assert record is not None, "a finished run has a record"
    facts = {
        "cell_id": cell_id,
        "backbone": record.choices.get("backbone"),
        "num_classes": config.data.num_classes,
        "mean": own.mean,
        "std": own.std,
    }
    metadata = {key: json.dumps(value) for key, value in facts.items()}
    # A batch of another size than the tracers see: a batch size written into the file would fail
    #     here.
    images = torch.randn(3, 3, *own.size, generator=torch.Generator().manual_seed(0))
    draft = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        draft.touch()  # says at once where nothing can be written
        reloaded = WRITERS[form](config, network, images[:2], metadata, draft)
        with torch.no_grad():
            _compare(reloaded(images), network(images), path)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        _refuse_existing(path, force)
        draft.replace(path)
    except OSError as error:
        raise RequestError(
            f"--output {path} cannot be written: {error.strerror or error}"
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return path


def _safetensors(
    config: Config, network: nn.Module, images: Tensor, metadata: dict[str, str], draft: Path
) -> Reloaded:
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    safetensors.torch.save_file(state, draft, metadata)
    again = build_network(config, initialise=False).strip().eval()
    load_into(again, load_state_dict(draft, again.state_dict()).state, str(draft))
    return again


def _onnx(
    config: Config, network: nn.Module, images: Tensor, metadata: dict[str, str], draft: Path
) -> Reloaded:
    import onnxruntime

    program = torch.onnx.export(
        network,
        (images,),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None, "the exporter on top of torch.export returns a program"
    program.model.metadata_props.update(metadata)
    program.save(draft, external_data=False)
    session = onnxruntime.InferenceSession(draft, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0])


def _program(
    config: Config, network: nn.Module, images: Tensor, metadata: dict[str, str], draft: Path
) -> Reloaded:
    program = torch.export.export(
        network, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, draft, extra_files={"metadata.json": json.dumps(metadata)})
    again: Reloaded = torch.export.load(draft).module()
    return again


# From a batch to its logits, as the written file computes them.
Reloaded = Callable[[Tensor], Tensor]
WRITERS = {Format.safetensors: _safetensors, Format.onnx: _onnx, Format.program: _program}


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RequestError(
            f'--format onnx needs the package {error.name}: pip install "dks[export]"'
        ) from error


def _compare(found: Tensor, expected: Tensor, path: Path) -> None:
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
    explain(
        f"the logits of the reloaded file differ from the network's by {difference:.1e}, of at "
        f"most {TOLERANCE:.0e}"
    )
    if not difference <= TOLERANCE:  # NaN is no agreement
        raise RuntimeError(
            f"{path} was not written: what it computes differs from the network by {difference:.1e}"
        )


def _refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise RequestError(f"{path} exists; give another --output, or --force to replace it")
