"""One file per method. Pure tensor code: nothing here knows about models."""
