"""The hospital's archive (PACS) as a datastore, over DICOMweb."""
