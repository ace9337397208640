"""The ledger: figures that papers print, beside each other and beside our records. `docs/ledger.md` states its rules."""
