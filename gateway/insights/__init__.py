"""What the ledger's past says of its future: rhythm, forecasts, anomalies, idle hours."""
