-- What operators do about credentials that cannot be revoked, and the comparison of leases with their targets.

ALTER TABLE leasehold.leases
  -- When its settlement was first begun; the age of what is unsettled.
  ADD COLUMN settling_since  timestamptz,
  -- A retry of the same request_id replaces the secret until then: one at a time, on any replica.
  ADD COLUMN reissuing_until timestamptz,
  -- An operator has declared it finished by hand: the broker tries no more.
  ADD COLUMN abandoned_at    timestamptz,
  ADD COLUMN abandoned_by    text,
  ADD COLUMN abandon_reason  text;

-- The slow queue: `settle_at` of an irrevocable lease is when the broker tries again of its own.
CREATE INDEX leases_irrevocable ON leasehold.leases (settle_at) WHERE outcome = 'irrevocable' AND abandoned_at IS NULL;
-- Those from before this release: at once, spread over a minute.
UPDATE leasehold.leases SET settle_at = clock_timestamp() + random() * interval '1 minute' WHERE outcome = 'irrevocable';

-- One row per target: who compares it now, and what the last comparison found.
CREATE TABLE leasehold.reconciliations (
  tenant        text        NOT NULL,
  provider      text        NOT NULL,
  target        text        NOT NULL,
  -- When the broker first knew of the target; the first periodic comparison comes an interval later.
  known_since   timestamptz NOT NULL,
  claimed_by    text,
  claimed_until timestamptz,
  finished_at   timestamptz,
  strays        integer     NOT NULL DEFAULT 0,
  missing       integer     NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant, provider, target)
);
GRANT SELECT, INSERT, UPDATE ON leasehold.reconciliations TO leasehold_broker;
