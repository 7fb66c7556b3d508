"""Many runs: kept in a store, and worked off by processes of their own."""
