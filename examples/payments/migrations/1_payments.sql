-- Read by SQLite and by PostgreSQL: only what both of them understand.

CREATE TABLE accounts (
    id            TEXT   NOT NULL PRIMARY KEY,
    balance_cents BIGINT NOT NULL CHECK (balance_cents >= 0),
    -- The largest fencing token that has written. Whoever lost a lock without noticing has a
    -- smaller one. Withdrawals lock the account and payments their key: each has a fence.
    fence         BIGINT NOT NULL DEFAULT 0
);

-- A payment that was asked for. It is written before anybody is charged, and finished together
-- with the charge. One that has no status is in progress, or was cut off and is taken up again by
-- the next retry or by the recovery; its money is put aside so long.
CREATE TABLE payments (
    id              TEXT   NOT NULL PRIMARY KEY,
    tenant          TEXT   NOT NULL,
    idempotency_key TEXT   NOT NULL,
    account         TEXT   NOT NULL REFERENCES accounts (id),
    amount_cents    BIGINT NOT NULL CHECK (amount_cents > 0),
    status          BIGINT,
    response        TEXT,
    fence           BIGINT NOT NULL DEFAULT 0,
    UNIQUE (tenant, idempotency_key),
    CHECK ((status IS NULL) = (response IS NULL))
);

CREATE INDEX payments_in_progress ON payments (account) WHERE status IS NULL;

CREATE TABLE ledger (
    -- A UUID of version 7: entries are in the order in which they were made.
    id           TEXT   NOT NULL PRIMARY KEY,
    account      TEXT   NOT NULL REFERENCES accounts (id),
    amount_cents BIGINT NOT NULL,
    -- None for a withdrawal. The last word: no payment is booked twice.
    payment      TEXT   UNIQUE REFERENCES payments (id)
);

CREATE INDEX ledger_of_account ON ledger (account, id);

INSERT INTO accounts (id, balance_cents)
VALUES ('alice', 100000), ('bob', 100000), ('carol', 100000);
