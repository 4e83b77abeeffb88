"""Networks shared by adapters, producers, fine-tuning and saliency estimators."""
