-- The largest fencing token that has written. Whoever lost a lock without noticing has a smaller
-- one. Withdrawals lock the account and payments their idempotency key: each has a fence.
ALTER TABLE accounts ADD COLUMN fence INTEGER NOT NULL DEFAULT 0;
ALTER TABLE payments ADD COLUMN fence INTEGER NOT NULL DEFAULT 0;
