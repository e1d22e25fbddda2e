"""What stands between the network and MONAI Label's endpoints; see `esp_medsam_app.server.asgi`."""
