"""Networks shared by adapters, producers and fine-tuning."""
