"""Taking a trained network elsewhere: as an ONNX file that holds all that stands between a picture and its answer."""
