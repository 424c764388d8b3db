"""Several devices and several machines: replicas that train as one, on torch.distributed."""
