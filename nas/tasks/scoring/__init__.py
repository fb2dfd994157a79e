"""What outputs are judged by: losses and metrics, chosen or compiled; longer scores."""
