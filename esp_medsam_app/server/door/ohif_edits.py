"""What the OHIF that MONAI Label carries lacks to correct a mask and to send it back.

Its mode *MONAI Label* comes without the panel that shows segments, paints and exports them, though
it has all that the panel needs. The command behind *Export DICOM SEG* is shadowed by another one of
the same name, which does not know where to store and then fails without a word. And the export puts
the first mask on the last slice where instances are numbered along the patient, since the library
that writes the file sorts the images by place, and the masks stay in the viewer's order. All three
are mended in the code as it is sent. Files of another OHIF, in which the places are not found, stay
as they are.

Beside that, the panel of MONAI Label itself says why something failed, as the server tells it; says
so where there is no volume to run on; asks for images that it can show; asks for a training of what
has new labels instead of all models, and tells of which; and tells what became of it.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

# the three files have 19, 24 and 118 kB; those of megabytes are not looked into
_LARGEST = 150_000
_SHAPES = ("Circle", "Sphere")


def _tool(name: str, icon: str, tools: tuple[str, str]) -> dict[str, Any]:
    """A button of OHIF's toolbox with a radius and two shapes."""
    size = {"commandName": "setBrushSize", "commandOptions": {"toolNames": tools}}
    shapes = [{"value": tool, "label": shape} for tool, shape in zip(tools, _SHAPES, strict=True)]
    identity = name.lower()
    return {
        "id": name,
        "icon": icon,
        "label": name,
        "evaluate": {"name": "evaluate.cornerstone.segmentation", "toolNames": tools},
        "options": [
            {"name": "Radius (mm)", "id": f"{identity}-radius", "type": "range",
             "min": 0.5, "max": 99.5, "step": 0.5, "value": 10, "commands": size},
            {"name": "Shape", "id": f"{identity}-shape", "type": "radio",
             "value": tools[0], "values": shapes, "commands": "setToolActiveToolbar"},
        ],
    }  # fmt: skip


# the mode registers these tools, and has no buttons for them
_BUTTONS = [
    {
        "id": "BrushTools",
        "uiType": "ohif.buttonGroup",
        "props": {
            "groupId": "BrushTools",
            "items": [
                _tool("Brush", "icon-tool-brush", ("CircularBrush", "SphereBrush")),
                _tool("Eraser", "icon-tool-eraser", ("CircularEraser", "SphereEraser")),
            ],
        },
    }
]
_STORE = """\
const told = (type, message) => servicesManager.services.uiNotificationService.show({
        title: 'Export DICOM SEG', message, type});
      try {
        await dataSource.store.dicom(naturalizedReport);
        told('success', 'The segmentation is stored');
      } catch (error) {
        told('error', 'The segmentation could not be stored');
        throw error;
      }"""
_IMAGES = "const segImages = imageIds.map(imageId => esm.cache.getImage(imageId));"
# by the distance along the slices' normal, the greatest first, as the library will
_SORTED = """\
const depth = image => {
        const { rowCosines: r, columnCosines: c, imagePositionPatient: p } =
          esm.metaData.get('imagePlaneModule', image.referencedImageId);
        return (r[1] * c[2] - r[2] * c[1]) * p[0] + (r[2] * c[0] - r[0] * c[2]) * p[1] +
          (r[0] * c[1] - r[1] * c[0]) * p[2];
      };
      const segImages = imageIds.map(imageId => esm.cache.getImage(imageId))
        .sort((one, other) => depth(other) - depth(one));"""
# what stands in one file of OHIF's, and what is sent in its place: all of it or nothing
_PANEL = (
    (
        "rightPanels: [monailabel.monaiLabel],",
        "rightPanels: [monailabel.monaiLabel, cornerstone.panelTool],",
    ),
    (
        "// toolbarService.addButtons(segmentationButtons);",
        f"toolbarService.addButtons({json.dumps(_BUTTONS)});",
    ),
    # a name without a button would stop the panel
    ("'segmentationToolbox', ['BrushTools', 'Shapes']", "'segmentationToolbox', ['BrushTools']"),
)
_EXPORT = (
    (
        "      segmentationId,\n      dataSource\n    }) => {\n      const promptResult",
        "      segmentationId,\n      dataSource = extensionManager.getActiveDataSource()[0]\n"
        "    }) => {\n      const promptResult",
    ),
    ("await dataSource.store.dicom(naturalizedReport);", _STORE),
    (_IMAGES, _SORTED),
)
# answers to inferences are read as bytes, those that tell of an error too
_REASON = """\
  static reason(failed, message) {
    const answer = failed && failed.response;
    if (!answer) {
      return message + ': the server does not answer';
    }
    let told = answer.data;
    if (told instanceof ArrayBuffer) {
      try {
        told = JSON.parse(new TextDecoder().decode(told));
      } catch (error) {
        told = null;
      }
    }
    return told && told.detail ? message + ': ' + told.detail : message;
  }
"""
_LAST = """\
  async last_train() {
    return await MonaiLabelClient.api_get(new URL('train/', this.server_url).toString());
  }
  static started(answer) {
    return Object.entries(answer || {}).map(([model, told]) => told.result
      ? 'Training of ' + model + ' is started'
      : model + ' is not trained: ' + told.detail).join('; ');
  }
"""
_STARTED = """\
          message: 'Model update task ' + (training ? 'STOPPED' : 'STARTED'),
          type: 'success',
          duration: 2000
"""
_STARTED_OF = """\
          message: training ? 'Training is stopped' : MonaiLabelClient.started(response.data),
          type: 'success',
          duration: 10000
"""
_NEXT = "  async next_sample(stategy = 'random', params = {}) {\n    const url = new URL("
_IS_RUNNING = "  async is_train_running() {\n"
_RUN = """\
      const nid = this.notification.show({
        title: 'MONAI Label - ' + model,
        message: 'Running Auto-Segmentation...',"""
_NO_VOLUME = """\
      if (!displaySet) {
        this.notification.show({
          title: 'MONAI Label - ' + model,
          message: 'There is no volume here to run on. OHIF shows none of a single slice, of ' +
            'several images in one series, and of X-rays: use 3D Slicer for these.',
          type: 'error',
          duration: 15000
        });
        return;
      }
"""
_SHOWN = "displaySetService.getDisplaySetByUID(viewport.displaySetInstanceUIDs[0])"
_SHOWN_IF_ANY = """\
viewport && viewport.displaySetInstanceUIDs && viewport.displaySetInstanceUIDs[0]
        ? displaySetService.getDisplaySetByUID(viewport.displaySetInstanceUIDs[0]) : null"""
_MOUNTED = """\
    const training = await this.props.client().is_train_running();
    this.setState({
      training: training
    });
  }
"""
_WATCHING = """\
    const training = await this.props.client().is_train_running();
    this.setState({
      training: training
    });
    this.watching = setInterval(async () => {
      if (this.state.training && !(await this.props.client().is_train_running())) {
        if (!this.state.training) {
          return;
        }
        this.setState({
          training: false
        });
        const ended = await this.props.client().last_train();
        if (ended && ended.data && ended.data.result) {
          this.notification.show({
            title: 'MONAI Label - ' + ended.data.request.model,
            message: 'Training: ' + ended.data.result,
            type: ended.data.result.startsWith('activated') ? 'success' : 'info',
            duration: 30000
          });
        }
      }
    }, 3000);
  }
  componentWillUnmount() {
    clearInterval(this.watching);
  }
"""


def _explained(message: str) -> tuple[str, str]:
    """An error's message, with the server's reason."""
    return f"message: {message},", f"message: MonaiLabelClient.reason(response, {message}),"


_ANSWERS = (
    (_IS_RUNNING, _REASON + _LAST + _IS_RUNNING),
    (_STARTED, _STARTED_OF),
    (
        f"{_NEXT}'activelearning/' + encodeURIComponent(stategy), this",
        f"{_NEXT}'activelearning/' + encodeURIComponent(stategy) + '?viewer=ohif', this",
    ),
    _explained("'Failed to Run Segmentation'"),
    _explained("'Failed to Fetch Next Sample'"),
    _explained("'Failed to ' + (training ? 'STOP' : 'RUN') + ' training'"),
    _explained("'Failed to Connect to MONAI Label'"),
    (_RUN, _NO_VOLUME + _RUN),
    (_SHOWN, _SHOWN_IF_ANY),
    # one that waits for its turn runs as well, to the person who started it
    (
        "response && response.status === 200 && response.data.status === 'RUNNING'",
        "response && response.status === 200",
    ),
    (
        "  async run_train(params) {\n    const url = new URL('train/', ",
        "  async run_train(params) {\n    const url = new URL('train/?new_labels=true', ",
    ),
    (_MOUNTED, _WATCHING),
)
EDITS = (_PANEL, _EXPORT, _ANSWERS)


@lru_cache(maxsize=1)
def edited_files(folder: Path) -> dict[str, str]:
    """The files of an OHIF that are sent otherwise than they are, by name.

    Args:
        folder: with its bundles.
    """
    found = {}
    for file in folder.glob("*.bundle.*.js"):
        if file.stat().st_size > _LARGEST:
            continue
        text = file.read_text(encoding="utf-8")
        for edits in EDITS:
            if all(before in text for before, _ in edits):
                for before, after in edits:
                    text = text.replace(before, after)
                found[file.name] = text
    return found
