"""Cases on disk become what training reads: this room knows both image files and training."""

from esp_medsam_app.dataset.slice_writing import DEFAULT_LIMIT, prepare_caches, prepare_slices

__all__ = ["DEFAULT_LIMIT", "prepare_caches", "prepare_slices"]
