"""A network behind HTTP: pictures are sent, what they show comes back."""
