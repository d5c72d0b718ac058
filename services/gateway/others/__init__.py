"""Several gateways behind one address: what each asks and tells the others."""
