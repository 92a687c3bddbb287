CREATE TABLE accounts (
    id            TEXT    NOT NULL PRIMARY KEY,
    balance_cents INTEGER NOT NULL CHECK (balance_cents >= 0)
) STRICT;

-- A payment that was asked for. It is written before anybody is charged, and finished together
-- with the charge. One that has no status is in progress, or was cut off and is taken up again by
-- the next retry; its money is put aside so long.
CREATE TABLE payments (
    id              TEXT    NOT NULL PRIMARY KEY,
    tenant          TEXT    NOT NULL,
    idempotency_key TEXT    NOT NULL,
    account         TEXT    NOT NULL REFERENCES accounts (id),
    amount_cents    INTEGER NOT NULL CHECK (amount_cents > 0),
    status          INTEGER,
    response        TEXT,
    UNIQUE (tenant, idempotency_key),
    CHECK ((status IS NULL) = (response IS NULL))
) STRICT;

CREATE INDEX payments_in_progress ON payments (account) WHERE status IS NULL;

CREATE TABLE ledger (
    entry        INTEGER NOT NULL PRIMARY KEY,
    account      TEXT    NOT NULL REFERENCES accounts (id),
    amount_cents INTEGER NOT NULL,
    -- None for a withdrawal. The last word: no payment is booked twice.
    payment      TEXT    UNIQUE REFERENCES payments (id)
) STRICT;

INSERT INTO accounts (id, balance_cents)
VALUES ('alice', 100000), ('bob', 100000), ('carol', 100000);
