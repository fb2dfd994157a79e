"""`nas compress`: methods applied to a network, before and after in one report."""
