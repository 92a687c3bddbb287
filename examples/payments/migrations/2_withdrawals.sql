-- A withdrawal that had an idempotency key, with its answer. It is written together with the entry in
-- the ledger.
CREATE TABLE withdrawals (
    tenant          TEXT   NOT NULL,
    idempotency_key TEXT   NOT NULL,
    account         TEXT   NOT NULL REFERENCES accounts (id),
    amount_cents    BIGINT NOT NULL CHECK (amount_cents > 0),
    status          BIGINT NOT NULL,
    response        TEXT   NOT NULL,
    PRIMARY KEY (tenant, idempotency_key)
);
