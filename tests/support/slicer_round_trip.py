"""What 3D Slicer makes of an image and a label map, and what it would submit; run by slicer-core.

    python slicer_round_trip.py IMAGE LABEL NAMES EXPORTED OUTPUT

NAMES are the model's labels in the order of their numbers, EXPORTED those to submit (JSON lists).
The label map becomes a segmentation as Slicer's MONAI Label module makes it, and the segments to
submit become OUTPUT as that module exports them. Prints JSON: how far the grids lie apart, how many
voxels are wrong, and the segments' names.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util import numpy_support


def main(image: str, label: str, names: list[str], exported: list[str], output: str) -> None:
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(scene)
    volume = loaded(scene, image, "vtkMRMLScalarVolumeNode")
    drawn = loaded(scene, label, "vtkMRMLLabelMapVolumeNode")
    before = voxels(drawn).copy()
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    # the module names the segments before it imports, and these take the voxels in their order
    ids = vtk.vtkStringArray()
    for name in names:
        ids.InsertNextValue(segmentation.GetSegmentation().AddEmptySegment(name, name))
    assert logic.ImportLabelmapToSegmentationNode(drawn, segmentation, ids)
    wrong = 0
    for number, name in enumerate(names, start=1):
        segment = of_segments(scene, logic, segmentation, [name], volume)
        wrong += int(((voxels(segment) > 0) != (before == number)).sum())
    result = of_segments(scene, logic, segmentation, exported, volume)
    writer = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    writer.SetFileName(output)
    assert writer.WriteData(result)
    expected = np.zeros_like(before)
    for number, name in enumerate(exported, start=1):
        expected[before == names.index(name) + 1] = number
    grids = [matrix(node) for node in (volume, drawn, result)]
    print(json.dumps({
        "apart": max(float(np.abs(grid - grids[0]).max()) for grid in grids),
        "wrong_imported": wrong,
        "wrong_exported": int((voxels(result) != expected).sum()),
        "voxels": int(before.size),
        "drawn": int((before > 0).sum()),
    }))  # fmt: skip


def loaded(scene: Any, file: str, kind: str) -> Any:
    """A file as a node."""
    node = scene.AddNewNodeByClass(kind)
    reader = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    reader.SetFileName(file)
    assert reader.ReadData(node), file
    return node


def of_segments(scene: Any, logic: Any, segmentation: Any, names: list[str], volume: Any) -> Any:
    """Some segments as a label map, in the numbers that Slicer gives them."""
    chosen = vtk.vtkStringArray()
    for name in names:
        chosen.InsertNextValue(name)
    node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    assert logic.ExportSegmentsToLabelmapNode(segmentation, chosen, node, volume)
    return node


def voxels(node: Any) -> np.ndarray:
    """Of a volume, `[z, y, x]`."""
    content = node.GetImageData()
    values = numpy_support.vtk_to_numpy(content.GetPointData().GetScalars())
    return values.reshape(content.GetDimensions()[::-1])


def matrix(node: Any) -> np.ndarray:
    """IJK to RAS."""
    found = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(found)
    return np.array([[found.GetElement(row, column) for column in range(4)] for row in range(4)])


if __name__ == "__main__":
    given = sys.argv[1:]
    main(given[0], given[1], json.loads(given[2]), json.loads(given[3]), given[4])
