"""One file per method: a LightningModule that reads like its paper, and what runs it."""
