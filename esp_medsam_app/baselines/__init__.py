"""What ESP-MedSAM is compared with: a model that needs a box, a network trained from nothing."""
