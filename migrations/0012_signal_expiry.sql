-- A signal that runs out has what it concerns decided again, as one that is cleared. Found when it has run out, so that a
-- signal that is reported again and again leaves nothing behind.
ALTER TABLE leasehold.signals ADD COLUMN expiry_queued boolean NOT NULL DEFAULT false;
CREATE INDEX signals_expiring ON leasehold.signals (expires_at)
  WHERE expires_at IS NOT NULL AND cleared_at IS NULL AND NOT expiry_queued;
-- What the release before put there for later.
DELETE FROM leasehold.signal_reevaluations WHERE pass = 0 AND due_at > clock_timestamp() + interval '1 minute';
