"""Language models that look at pictures, behind one protocol."""
