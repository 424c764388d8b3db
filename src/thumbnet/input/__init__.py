"""From uint8 pictures to batches: order, distortions, shuffling pool, prefetching."""
