"""From a Config to a network: building, the deployed form, counts."""
