"""Reading an image's modality: from DICOM's tags, else from what it looks like, else asking.

And the other way round: seeing that an image is hardly of the modality that somebody chose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.errors import InputError
from esp_medsam_app.inference.dicom_evidence import DicomEvidence, dicom_evidence
from esp_medsam_app.inference.image_features import features_of
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks.tiny_vit import TinyViT
from esp_medsam_app.weights.modality_classifier import ClassifierDescription, ModalityClassifier

# What a person gives for a modality to have it read from the image.
AUTO = "auto"
# The likeliest that an error names.
_NAMED = 3

# From an image to the probabilities of the classifier's classes, the likeliest first.
Look = Callable[[MedicalImage], Mapping[str, float]]


@dataclass(frozen=True)
class ModalityReading:
    """What was read, or what stands to choice.

    Attributes:
        name: the modality; none if it was not certain enough.
        confidence: probability of the likeliest candidate, 0 to 1; 0 if nothing looked at it.
        candidates: modalities that the tags allow with their probabilities among all that the
            classifier knows, the likeliest first.
        source: `dicom`: the tags decided; `classifier`: what the image looks like did.
        reason: why nothing was chosen; empty if something was.
    """

    name: str | None
    confidence: float
    candidates: Mapping[str, float] = field(default_factory=dict)
    source: Literal["dicom", "classifier"] = "classifier"
    reason: str = ""

    def decided(self, image: MedicalImage, remedy: str) -> str:
        """The modality's name.

        Args:
            image: for the message.
            remedy: how the user tells the modality.

        Raises:
            InputError: none was chosen; names the likeliest.
        """
        if self.name is not None:
            return self.name
        if self.confidence:
            first = list(self.candidates.items())[:_NAMED]
            named = "; likeliest: " + ", ".join(f"{name} ({share:.0%})" for name, share in first)
        else:
            named = f"; possible: {', '.join(self.candidates)}" if self.candidates else ""
        raise InputError(f"{self.reason}{named}", path=image.path, remedy=remedy)


def read_modality(
    image: MedicalImage,
    modalities: Mapping[str, Modality],
    classifier: ClassifierDescription | None = None,
    look: Look | None = None,
) -> ModalityReading:
    """Read the modality of an image.

    Tags that name one modality and its part of the body decide. Else what the image looks like
    chooses among those that the tags allow, if its probability among all classes reaches the
    classifier's threshold: an image that the tags allow and that looks like another is not guessed.

    Args:
        image: picture or volume.
        modalities: to choose among, by name.
        classifier: what is known of the classifier, where there is one.
        look: the classifier itself; not called where the tags suffice.

    Raises:
        InputError: the image has nothing to look at.
    """
    evidence = dicom_evidence(image, modalities)
    fitting = evidence.fitting
    if not fitting:
        return _asks(evidence, f"DICOM says {evidence.said}: none of the modalities is for that")
    if evidence.certain:
        return ModalityReading(fitting[0], 1.0, {fitting[0]: 1.0}, "dicom")
    silent = f"DICOM says only {evidence.said}" if evidence.said else "it has no DICOM tags"
    if classifier is None or look is None:
        return _asks(evidence, f"{silent}, and the weights have no classifier to look at it")
    unknown = [name for name in fitting if name not in classifier.modalities]
    if unknown:
        return _asks(evidence, f"{silent}, and the classifier does not know {', '.join(unknown)}")
    candidates = {name: share for name, share in look(image).items() if name in fitting}
    best, confidence = next(iter(candidates.items()))
    source: Literal["dicom", "classifier"] = "dicom" if len(fitting) == 1 else "classifier"
    if confidence >= classifier.threshold:
        return ModalityReading(best, confidence, candidates, source)
    reason = f"{silent}, and what it shows cannot be told with confidence"
    return ModalityReading(None, confidence, candidates, source, reason)


def mistaken_for(
    image: MedicalImage,
    asked: str,
    modalities: Mapping[str, Modality],
    classifier: ClassifierDescription | None = None,
    look: Look | None = None,
) -> tuple[str, float] | None:
    """Which modality an image is of rather than the one that was asked for, and how probably.

    None unless the classifier would decide on that one: an image of a site that it does not know
    looks like nothing it knows, and is not held for another. Tags that name the modality asked for,
    and its part of the body, are believed without a look.

    Args:
        image: picture or volume.
        asked: a modality's name. One that the classifier does not know is never objected to.
        modalities, classifier, look: as for `read_modality`.

    Raises:
        InputError: the image has nothing to look at.
    """
    if classifier is None or look is None or asked not in classifier.modalities:
        return None
    evidence = dicom_evidence(image, modalities)
    if evidence.certain and evidence.fitting == (asked,):
        return None
    best, confidence = next(iter(look(image).items()))
    return (best, confidence) if best != asked and confidence >= classifier.threshold else None


def looking(classifier: ModalityClassifier, encoder: TinyViT) -> Look:
    """The classifier on the plain backbone, which may be on any device."""

    def look(image: MedicalImage) -> Mapping[str, float]:
        return classifier.rank(features_of(encoder, image, classifier.description.side))

    return look


def _asks(evidence: DicomEvidence, reason: str) -> ModalityReading:
    """Nothing is known but what the tags allow."""
    return ModalityReading(None, 0.0, dict.fromkeys(evidence.fitting, 0.0), "dicom", reason)
