"""What a training shows of itself: step lines, TensorBoard, health checks, signals."""
