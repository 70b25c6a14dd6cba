"""What vLLM's workers on CPUs need beside vLLM's own calls, by its official `worker_extension_cls`."""

from __future__ import annotations

EXTENSION = f"{__name__}.RepackHeads"
"""For the `worker_extension_cls` of vLLM, which imports it in each worker."""


class RepackHeads:
    """Mends the output layer after new weights were loaded on a CPU.

    On CPUs, vLLM multiplies by packed copies of the weights. `reload_weights` packs anew what it loads; an
    output layer that is tied to the embedding is not loaded by itself and would keep the copy of the old
    weights, without a word. vLLM mixes this class into its worker.
    """

    def repack_heads(self) -> int:
        """Pack anew what keeps its weights beside the copy: embeddings and output layers.

        Returns:
            How many layers.
        """
        layers = [
            layer
            for layer in self.model_runner.get_model().modules()  # type: ignore[attr-defined]
            if hasattr(layer, "cpu_linear") and hasattr(layer, "tie_weights")
        ]
        for layer in layers:
            layer.quant_method.process_weights_after_loading(layer)
        return len(layers)
