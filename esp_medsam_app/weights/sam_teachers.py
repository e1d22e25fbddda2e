"""Teachers on a SAM ViT, on disk: what was trained, and which checkpoint it belongs to.

```
teacher.json           modalities, SHA-256 of SAM's checkpoint and of the other file
teacher.safetensors    adapters, SPPG, QDMD and queries in float32
```

SAM's own weights, up to 2.5 GB, stay in the user's checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save
from torch import Tensor

from esp_medsam_app.data.texts import read_json
from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import WeightsError
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.networks.esp_medsam import Design
from esp_medsam_app.networks.modality_decoder import ModalityQueries
from esp_medsam_app.networks.sam_teacher import SamAdapters, SamInput, SamTeacher
from esp_medsam_app.weights.integrity import check_sha256, read_safetensors, sha256_of
from esp_medsam_app.weights.sam_checkpoints import load_sam_encoder

DESCRIPTION, TENSORS = "teacher.json", "teacher.safetensors"
TEACHER = Design(controllers=False)


class SamTeacherDescription(BaseModel):
    """The content of `teacher.json`.

    Attributes:
        sam_sha256: of the checkpoint whose ViT the adapters belong to.
        unit_input: the ViT expects [0, 1] (MedSAM) and not SAM's mean and deviation.
        modalities: what the teacher knows.
        sha256: of `teacher.safetensors`.
    """

    model_config = ConfigDict(extra="forbid")
    sam_sha256: str
    unit_input: bool
    modalities: list[Modality]
    sha256: str


def sam_teacher_encoder(checkpoint: Path, *, unit_input: bool, adapters: bool = True) -> SamTeacher:
    """A SAM ViT as an encoder of images in [0, 1], with fresh adapters or as it is.

    Raises:
        WeightsError: missing, damaged, or no segment-anything checkpoint.
    """
    vit = load_sam_encoder(checkpoint)
    prepare = SamInput.unit(vit.img_size) if unit_input else SamInput(vit.img_size)
    fresh = SamAdapters(vit, own_neck=True) if adapters else None
    return SamTeacher(vit, fresh, prepare, recompute=True)


def is_sam_teacher(folder: Path) -> bool:
    """Whether a folder holds a teacher on a SAM ViT."""
    return (folder / DESCRIPTION).is_file()


def save_sam_teacher(
    folder: Path,
    network: EspMedSam,
    modalities: Iterable[Modality],
    *,
    checkpoint: Path,
    unit_input: bool,
) -> None:
    """Write a trained teacher; `teacher.json` comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TENSORS).write_bytes(save(_trained(network)))
    description = SamTeacherDescription(
        sam_sha256=sha256_of(checkpoint),
        unit_input=unit_input,
        modalities=list(modalities),
        sha256=sha256_of(folder / TENSORS),
    )
    with written_whole(folder / DESCRIPTION) as partial:
        partial.write_text(description.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_sam_teacher(folder: Path, checkpoint: Path) -> tuple[EspMedSam, Sequence[Modality]]:
    """A teacher and its modalities, on the CPU in evaluation mode.

    Raises:
        WeightsError: a file is missing or damaged, or the checkpoint is another one.
    """
    file = folder / DESCRIPTION
    try:
        said = SamTeacherDescription.model_validate(read_json(file))
    except (OSError, ValueError, ValidationError) as error:
        raise WeightsError(
            f"not a teacher: {DESCRIPTION} cannot be read ({str(error).splitlines()[0]})",
            path=folder,
            remedy="Give the folder that `esp-medsam distill teacher --sam` wrote",
        ) from error
    check_sha256(folder / TENSORS, said.sha256)
    if sha256_of(checkpoint) != said.sam_sha256:
        raise WeightsError(
            "the teacher was trained on another SAM checkpoint",
            path=checkpoint,
            remedy=f"Give the one with SHA-256 {said.sam_sha256}",
        )
    encoder = sam_teacher_encoder(checkpoint, unit_input=said.unit_input)
    network = EspMedSam(encoder, TEACHER)
    for modality in said.modalities:
        network.add_modality(modality.name, ModalityQueries(len(modality.labels)))
    tensors = read_safetensors(folder / TENSORS)
    if tensors.keys() != _trained(network).keys():
        raise WeightsError("its tensors do not fit this release", path=folder / TENSORS)
    network.load_state_dict(tensors, strict=False)
    return network.eval().requires_grad_(False), said.modalities


def _trained(network: EspMedSam) -> dict[str, Tensor]:
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
        if not name.startswith("encoder.") or name.startswith("encoder.adapters.")
    }
