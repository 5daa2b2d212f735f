"""From prompts to pictures: pipelines, prompts resolved into conditioning, generation, and results that tell all."""
