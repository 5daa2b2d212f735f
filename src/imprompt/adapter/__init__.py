"""The adapter: spec, projectors, sites, conditioning, attachment and checkpoints. Torch and safetensors only."""
