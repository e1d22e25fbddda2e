"""What MONAI Label users expect in an app; the code is in the package esp_medsam_app."""
